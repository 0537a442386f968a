"""When a pruned model is called wrecked, and by what margin."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from blast.evaluation.wrecked import kept_margin, unigram_loss, wrecked


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"loss": 13.1, "vocabulary": 49152}, r"its loss of 13\.10 .* no better than the 10\.80 of guessing"),
        ({"loss": math.nan, "vocabulary": 49152}, "no better than the 10.80 of guessing"),
        ({"loss": 3.0, "vocabulary": 49152, "kept": 0.31}, "it keeps 31 % of the margin"),
        ({"kept": -0.2}, "it keeps -20 % of the margin"),
        ({"loss": 3.0, "vocabulary": 49152, "kept": 0.6}, None),
        ({"kept": math.nan}, None),
    ],
)
def test_a_wrecked_model_is_named_with_what_to_change(facts, said):
    found = wrecked(**facts)
    if said is None:
        assert found is None
    else:
        assert re.search(said, found)
        assert "train for more steps" in found


def test_the_kept_margin_is_one_for_dense_and_zero_for_chance():
    assert kept_margin(2.0, 2.0, 7.0) == 1
    assert kept_margin(7.0, 2.0, 7.0) == 0
    assert kept_margin(9.5, 2.0, 7.0) == pytest.approx(-0.5)
    assert math.isnan(kept_margin(3.0, 7.0, 7.0))


def test_the_unigram_loss_is_the_entropy_of_the_text_for_much_text():
    tokens = np.random.default_rng(0).choice(4, size=200_000, p=[0.5, 0.25, 0.125, 0.125])
    wanted = 1.75 * math.log(2)
    assert unigram_loss(tokens[:100_000], tokens[100_000:], 4) == pytest.approx(wanted, rel=0.01)


def test_a_token_that_training_never_saw_is_not_impossible():
    assert unigram_loss(np.array([0, 0, 0]), np.array([1]), 2) == pytest.approx(math.log(5))
