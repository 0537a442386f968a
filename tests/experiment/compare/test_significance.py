"""The paired tests against scipy's, and what they say where there is too little to test."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from blast.evaluation.item_scores import ItemScores
from blast.experiment.compare.significance import holm, over_items, over_seeds, sign_test


def texts(nats) -> ItemScores:
    return ItemScores.of_texts(nats, [100] * len(nats), 40 * len(nats), "sha256:1")


def answers(right) -> ItemScores:
    right = np.array(right, dtype=bool)
    return ItemScores(np.ones(len(right)), np.zeros(len(right), dtype=int), {"acc": right}, {"acc": 0.5}, 1, "sha256:1")


def test_the_items_of_texts_are_compared_by_the_t_test_that_scipy_has():
    random = np.random.default_rng(0)
    ours = random.normal(100, 10, 50)
    theirs = ours + random.normal(0.5, 1, 50)
    found = over_items([(texts(ours), texts(theirs))], "bits_per_byte", denominator=np.log(2) * 50 * 100)
    expected = stats.ttest_rel(theirs, ours)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.n == 50
    low, high = expected.confidence_interval()
    assert (found.low, found.high) == pytest.approx((low / np.log(2) / 100, high / np.log(2) / 100))


def test_answers_are_compared_by_mcnemars_exact_test():
    ours = [True] * 20 + [False] * 10 + [True] * 20
    theirs = [True] * 20 + [True] * 10 + [False] * 2 + [True] * 18
    found = over_items([(answers(ours), answers(theirs))], "acc")
    assert found.p == pytest.approx(stats.binomtest(2, 12).pvalue)
    assert str(found).endswith("(McNemar's exact test over items, n = 50)")


def test_seeds_are_compared_by_the_t_test_that_scipy_has():
    first, second = [1.0, 1.2, 0.9, 1.1], [1.1, 1.4, 1.05, 1.15]
    assert over_seeds(first, second).p == pytest.approx(stats.ttest_rel(second, first).pvalue)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (over_seeds([1.0], [2.0]), "too few to test (1 seed; 3 are needed)"),
        (over_seeds([1.0, 2.0], [2.0, 1.0]), "too few to test (2 seeds; 3 are needed)"),
        (over_seeds([1.0, 2.0, 3.0], [2.0, 3.0, 4.0]), "the same difference on all 3 seeds"),
        (over_seeds([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]), "equal on all 3 seeds"),
        (over_items([(texts([1.0] * 9), texts([2.0] * 9))], "loss"), "too few to test (9 items; 30 are needed)"),
        (sign_test(np.array([1, -1, 0, 1]), "s", "pairs"), "too few to test (3 of 4 pairs differ; 6 are needed)"),
        (sign_test(np.zeros(4), "sign test", "pairs"), "equal in all 4 pairs"),
    ],
)  # fmt: skip
def test_where_there_is_too_little_to_test_it_says_so(found, words):
    assert found.p is None
    assert str(found) == words
    assert not found.significant


def test_several_tests_are_corrected_together():
    assert holm([0.04, 0.001, 0.03]) == [False, True, False]
    assert holm([0.01, 0.02, 0.03]) == [True, True, True]
    assert holm([]) == []
