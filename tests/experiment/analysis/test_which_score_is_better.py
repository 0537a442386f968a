"""What is better, by how much, and when that means nothing: the rules that every comparison of scores rests on."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from blast.experiment.analysis.comparison import at_chance, higher_is_better, relative_loss, standard_error


@pytest.mark.parametrize("metric", ["acc", "acc_norm", "top1", "top5", "rouge_sum"])
def test_a_share_of_right_answers_is_better_if_it_is_higher(metric):
    assert higher_is_better(SimpleNamespace(better=None, metric=metric))
    assert higher_is_better(SimpleNamespace(better=math.nan, metric=metric))


@pytest.mark.parametrize("metric", ["bits_per_byte", "perplexity", "loss"])
def test_a_loss_is_better_if_it_is_lower(metric):
    assert not higher_is_better(SimpleNamespace(better=None, metric=metric))


def test_a_record_that_says_which_is_better_is_believed():
    assert higher_is_better(SimpleNamespace(better="higher", metric="perplexity"))
    assert not higher_is_better(SimpleNamespace(better="lower", metric="acc"))


def test_the_loss_is_positive_where_a_score_is_worse_than_dense():
    assert relative_loss(0.6, 0.8, higher=True) == pytest.approx(25.0)
    assert relative_loss(0.9, 0.8, higher=True) == pytest.approx(-12.5)
    assert relative_loss(1.5, 1.2, higher=False) == pytest.approx(25.0)
    assert relative_loss(0.9, 1.2, higher=False) == pytest.approx(-25.0)
    # A log-likelihood is negative: nearer to zero is better.
    assert relative_loss(-3.0, -2.0, higher=True) == pytest.approx(50.0)
    assert math.isnan(relative_loss(0.1, 0.0, higher=True))


def test_a_score_is_at_chance_up_to_two_standard_errors_above_it():
    assert at_chance(0.27, 0.01, 0.25)
    assert not at_chance(0.2701, 0.01, 0.25)
    assert at_chance(0.2, 0.0001, 0.25)
    assert at_chance(0.25, math.nan, 0.25)
    assert not at_chance(0.2501, math.nan, 0.25)
    assert not at_chance(-5.0, 0.1, math.nan)


def test_the_standard_error_is_half_of_one_interval_and_a_quarter_of_the_other():
    assert standard_error(SimpleNamespace(spread="stderr", low=1.0, high=1.5)) == pytest.approx(0.25)
    assert standard_error(SimpleNamespace(spread="ci95", low=1.0, high=1.0 + 2 * 1.96)) == pytest.approx(1.0)
    assert math.isnan(standard_error(SimpleNamespace(spread="q20-80", low=1.0, high=1.5)))
    assert math.isnan(standard_error(SimpleNamespace(spread="stderr", low=None, high=1.5)))
    assert math.isnan(standard_error(SimpleNamespace(spread="stderr", low=1.0, high=math.nan)))
