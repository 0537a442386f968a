"""Verdicts where a value lies exactly at its limit, or just on one side of it."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import pytest

from blast.experiment.analysis import claims
from blast.experiment.analysis.claims import compare, judge, majority
from blast.experiment.analysis.paper_values import read_paper_values

VALUES = {value.id: value for value in read_paper_values()}


def test_a_speed_up_that_begins_at_the_limit_is_met_and_one_that_ends_there_is_undecided():
    assert compare(1.6, 1.8, 1.6, at_least=True) == "met"
    assert compare(1.4, 1.6, 1.6, at_least=True) == "undecided"
    assert compare(1.4, 1.5999, 1.6, at_least=True) == "not met"


def test_a_loss_that_ends_at_the_limit_is_met_and_one_that_begins_there_is_undecided():
    assert compare(1.0, 2.25, 2.25, at_least=False) == "met"
    assert compare(2.25, 3.0, 2.25, at_least=False) == "undecided"
    assert compare(2.2501, 3.0, 2.25, at_least=False) == "not met"
    assert compare(1.0, math.nan, 2.25, at_least=False) == "undecided"


def test_a_point_of_a_majority_counts_below_the_limit_alone():
    assert majority([(2.0, 0.25)], 2.25) == "undecided"  # it may reach the limit
    assert majority([(2.0, 0.2)], 2.25) == "met"
    assert majority([(2.25, 0.0)], 2.25) == "not met"
    assert majority([(2.5, 0.25)], 2.25) == "not met"
    assert majority([(2.5, 0.3)], 2.25) == "undecided"


def pruned(**columns) -> pd.DataFrame:
    row = {
        "suite": "train", "status": "ok", "method": "blast", "model": "gpt2", "dataset": "technical_text",
        "sparsity": 0.95, "achieved_sparsity": 0.95,
    }  # fmt: skip
    return pd.DataFrame([row | columns])


@pytest.mark.parametrize(("asked", "achieved", "verdict"), [
    (0.95, 0.9451, "met"), (0.95, 0.9449, "not met"), (0.946, 0.946, "met"), (0.944, 0.96, "not run"),
])  # fmt: skip
def test_half_a_percent_is_the_rounding_to_whole_blocks(asked, achieved, verdict):
    value = VALUES["sparsity"]
    assert value.value == 0.95
    assert judge(value, pruned(sparsity=asked, achieved_sparsity=achieved))[0].verdict == verdict


def loss_of(monkeypatch, **columns):
    """The finding for GPT-2 XL's perplexity, which may rise by 8.35 % at 80 %, from one line of a summary."""
    value = replace(VALUES["gpt2_xl"], value=8.0)
    line = {
        "model": value.model, "method": "blast", "dataset": "text", "hardware": "gpu", "sparsity": value.sparsity,
        "relative": 7.0, "noise": math.nan, "relative_error": math.nan,
    }  # fmt: skip
    monkeypatch.setattr(claims, "summarise", lambda table, metrics: pd.DataFrame([line | columns]))
    table = pd.DataFrame([{"model": value.model, "metric": value.metric}])
    (finding,) = judge(value, table)
    return finding


@pytest.mark.parametrize(("relative", "noise", "verdict"), [
    (7.0, 0.5, "met"), (7.0, 1.5, "undecided"), (9.0, 0.5, "not met"), (9.0, 1.5, "undecided"),
])  # fmt: skip
def test_the_noise_of_a_loss_counts_on_both_sides(monkeypatch, relative, noise, verdict):
    assert loss_of(monkeypatch, relative=relative, noise=noise).verdict == verdict
    # Without a spread over seeds, it is two standard errors of the difference.
    assert loss_of(monkeypatch, relative=relative, relative_error=noise / 2).verdict == verdict


@pytest.mark.parametrize(
    ("off", "counts"), [(0.0, True), (0.019, True), (-0.019, True), (0.021, False), (-0.021, False)]
)
def test_a_loss_counts_at_the_sparsity_of_the_claim_alone(monkeypatch, off, counts):
    sparsity = VALUES["gpt2_xl"].sparsity + off
    assert (loss_of(monkeypatch, sparsity=sparsity, noise=0.1).verdict == "met") is counts
