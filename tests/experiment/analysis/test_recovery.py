"""The power law of recovery, and how sure it is."""

from __future__ import annotations

import math

import fake_study as fake
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blast.experiment.analysis.recovery import fit, recoveries
from blast.experiment.records.rows import record_rows
from blast.experiment.records.table import as_table


@given(scale=st.floats(1, 1e6), power=st.floats(0.05, 1.5))
@settings(deadline=None, max_examples=20)
def test_an_exact_power_law_is_found_again(scale, power):
    tokens = [1e6, 3e6, 2e7, 1e8]
    law = fit(tokens, [scale * x**-power for x in tokens])
    assert law.power == pytest.approx(power, rel=1e-6)
    low, high = law.band(1e9)
    assert low == pytest.approx(law.loss(1e9), rel=1e-4)
    assert high == pytest.approx(law.loss(1e9), rel=1e-4)
    assert law.loss(law.tokens_for(2.25)[0]) == pytest.approx(2.25)


def test_the_band_holds_the_true_line_in_about_nineteen_of_twenty_fits():
    draw, tokens, held = np.random.default_rng(0), np.array([1e6, 4e6, 16e6, 64e6, 256e6]), 0
    for _ in range(400):
        law = fit(tokens, 900 * tokens**-0.3 * np.exp(draw.normal(0, 0.1, len(tokens))))
        low, high = law.band(1e8)
        held += low <= 900 * 1e8**-0.3 <= high
    # 380 are expected, with a standard deviation of 4.4.
    assert 362 <= held <= 396


def test_two_points_have_a_line_and_no_error():
    law = fit([1e6, 4e6], [8.0, 4.0])
    assert law.power == pytest.approx(0.5)
    assert all(math.isnan(edge) for edge in law.band(1e7))
    middle, low, high = law.tokens_for(2.0)
    assert middle == pytest.approx(1.6e7)
    assert math.isnan(low)
    assert math.isnan(high)


def test_one_number_of_tokens_and_losses_below_zero_have_no_fit():
    assert fit([1e6, 1e6], [3.0, 4.0]) is None
    assert fit([1e6, 4e6], [3.0, -1.0]) is None


def test_a_loss_that_does_not_fall_never_reaches_its_goal():
    assert fit([1e6, 4e6, 16e6], [5.0, 5.1, 5.2]).tokens_for(2.25) == (math.inf, math.inf, math.inf)


def test_recovery_is_of_pretrained_models_each_against_dense_of_as_many_tokens():
    records = [fake.make_record_of(point) for point in fake.points().values()]
    found = recoveries(as_table([row for record in records for row in record_rows(record)]))
    assert [(entry.first.model, entry.first.sparsity) for entry in found] == [
        ("smollm2-135m", sparsity) for sparsity in (0.5, 0.8, 0.95)
    ]
    for entry in found:
        assert list(entry.rows["trained"]) == [64 * 512 * steps for steps in (400, 800, 1600)]
        assert entry.law.power == pytest.approx(0.6, abs=0.1)
    dense = {row.dense_config for row in found[0].rows.itertuples()}
    assert len(dense) == 3
