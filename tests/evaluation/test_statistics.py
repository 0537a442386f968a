"""Standard errors."""

from __future__ import annotations

import math

import numpy as np
import pytest

from blast.errors import BlastError
from blast.evaluation.metric import metric
from blast.evaluation.statistics import (
    binomial_stderr,
    bootstrap_sums,
    interval,
    mean_and_stderr,
    ratio_and_stderr,
)


def test_the_standard_error_of_a_mean_is_that_of_the_textbook() -> None:
    values = [1.0, 2.0, 4.0, 7.0]
    mean, stderr = mean_and_stderr(values)
    assert mean == 3.5
    assert stderr == pytest.approx(np.std(values, ddof=1) / 2)
    assert mean_and_stderr([3.0]) == (3.0, None)


def test_the_ratio_of_equal_documents_has_the_standard_error_of_their_mean() -> None:
    values = [1.0, 2.0, 4.0, 7.0]
    assert ratio_and_stderr(values, [1.0] * 4) == pytest.approx(mean_and_stderr(values))


def test_the_delta_method_agrees_with_a_bootstrap_over_documents() -> None:
    generator = np.random.default_rng(0)
    sizes = generator.integers(50, 500, 300).astype(float)
    bits = sizes * generator.normal(2.0, 0.4, 300)
    ratio, stderr = ratio_and_stderr(bits.tolist(), sizes.tolist())
    draws = generator.integers(0, 300, (4000, 300))
    spread = (bits[draws].sum(1) / sizes[draws].sum(1)).std()
    assert ratio == pytest.approx(bits.sum() / sizes.sum())
    assert stderr == pytest.approx(spread, rel=0.06)


def test_the_ratio_of_one_document_has_no_standard_error() -> None:
    assert ratio_and_stderr([4.0], [2.0]) == (2.0, None)


def test_the_binomial_standard_error_is_largest_at_one_half() -> None:
    assert binomial_stderr(0.5, 100) == 0.05
    assert binomial_stderr(0.0, 100) == 0.0


def test_a_metric_entry_holds_one_standard_error_either_side() -> None:
    entry = metric("acc", 0.3, unit="fraction", better="higher", n=40, stderr=0.1, task="t", setting={"chance": 0.25})
    assert entry == {
        "metric": "acc",
        "task": "t",
        "unit": "fraction",
        "value": 0.3,
        "low": pytest.approx(0.2),
        "high": pytest.approx(0.4),
        "spread": "stderr",
        "n": 40,
        "better": "higher",
        "setting": {"chance": 0.25},
    }
    bare = metric("weights_bytes", 10, unit="bytes", better="lower")
    assert (bare["low"], bare["high"], bare["spread"]) == (None, None, None)


def test_a_metric_that_is_not_finite_fails_in_one_sentence() -> None:
    with pytest.raises(BlastError, match="t: acc is nan, not a finite number"):
        metric("acc", math.nan, unit="fraction", better="higher", task="t")


def test_bootstrap_draws_keep_two_models_paired_and_give_the_standard_error():
    random = np.random.default_rng(5)
    base = random.normal(size=400)
    both = np.stack([base, base + 1.0], axis=1)
    draws = bootstrap_sums(both, "set") / 400
    assert np.allclose(draws[:, 1] - draws[:, 0], 1.0)
    assert np.allclose(draws[:, 0], bootstrap_sums(base, "set") / 400)
    assert not np.allclose(draws[:, 0], bootstrap_sums(base, "other set") / 400)
    assert draws[:, 0].std() == pytest.approx(base.std() / 20, rel=0.05)


def test_the_percentile_interval_covers_a_mean_as_often_as_it_says():
    random = np.random.default_rng(6)
    covered = 0
    for _ in range(300):
        low, high = interval(bootstrap_sums(random.exponential(size=120), "set") / 120)
        covered += low <= 1.0 <= high
    # .95 is asked for; a mean of 120 exponential values gives .94. Three standard errors of the count are .04.
    assert 0.90 <= covered / 300 <= 0.98


def test_the_draws_of_the_bootstrap_stay_so_that_recorded_intervals_can_be_made_again():
    values = np.arange(5.0)
    assert bootstrap_sums(values, "x")[:5].tolist() == [16.0, 12.0, 7.0, 13.0, 12.0]
    assert bootstrap_sums(values, "y")[:5].tolist() == [13.0, 2.0, 15.0, 8.0, 14.0]
    assert bootstrap_sums(values, "x").shape == (2000,)
