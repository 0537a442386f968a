"""Facts of a point that tell trials, repetitions and different runs apart."""

from __future__ import annotations

import fake_study as fake
import pytest

from blast.experiment.records.point_facts import training_facts

POINT = "gpt2.technical_text.blast.s95.b64.seed0"


def digest_with(evaluation: dict) -> str:
    point = fake.points()[POINT].to_dict()
    return training_facts(point | {"evaluation": point["evaluation"] | evaluation})["same_but_rate"]


@pytest.mark.parametrize("more", [{"train": 256}, {"tasks": ["hellaswag"]}, {"items": 100}])
def test_points_are_trials_of_one_rate_whatever_else_is_evaluated(more):
    assert digest_with(more) == digest_with({})


@pytest.mark.parametrize("other", [{"limit": 7}, {"separate_test": True}, {"batch": 5}])
def test_points_whose_held_out_data_are_scored_otherwise_are_no_trials(other):
    assert digest_with(other) != digest_with({})
