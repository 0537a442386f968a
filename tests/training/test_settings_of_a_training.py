"""What the settings of a training mean, value by value."""

from __future__ import annotations

import math

import pytest
import torch

from blast.training.settings import TrainingSettings

GIVEN = {"steps": 10, "batch": 4, "learning_rate": 0.01}


def settings(**changes) -> TrainingSettings:
    return TrainingSettings.from_dict(GIVEN | changes)


@pytest.mark.parametrize(("dtype", "made"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_products_are_made_in_the_dtype_that_is_asked_for_and_no_other(dtype, made):
    matrix = torch.ones(2, 2)
    with settings(dtype=dtype).autocast(torch.device("cpu")):
        assert (matrix @ matrix).dtype == made
    assert settings().dtype == "float32"


def test_a_cosine_goes_from_its_peak_through_the_middle_to_the_share_that_is_asked_for():
    cosine = settings(steps=12, warmup=2 / 12, final_learning_rate=0.2)
    assert cosine.rate(0) == pytest.approx(0.005)
    assert cosine.rate(1) == cosine.rate(2) == pytest.approx(0.01)
    assert cosine.rate(7) == pytest.approx(0.01 * 0.6)
    assert cosine.rate(12) == pytest.approx(0.002)
    expected = [0.01 * (0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * (step - 2) / 10))) for step in range(2, 13)]
    assert [cosine.rate(step) for step in range(2, 13)] == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_the_first_step_is_never_without_a_rate(schedule):
    for steps, warmup in ((1, 0.0), (1, 1.0), (4, 0.0), (4, 0.1)):
        assert settings(steps=steps, warmup=warmup, decay=0, learning_rate_schedule=schedule).rate(0) == 0.01


def test_a_run_that_is_all_warm_up_ends_at_its_peak():
    rising = settings(steps=5, warmup=1.0, final_learning_rate=0.0)
    assert [rising.rate(step) for step in range(5)] == pytest.approx([0.002, 0.004, 0.006, 0.008, 0.01])


def test_a_decay_of_a_single_step_halves_nothing():
    short = settings(steps=10, warmup=0, decay=0.1, final_learning_rate=0.0, learning_rate_schedule="wsd")
    assert [short.rate(step) for step in (0, 8, 9)] == [0.01] * 3
    assert short.rate(10) == 0.0


@pytest.mark.parametrize(("processes", "works"), [(1, True), (2, True), (3, False), (4, True)])
def test_a_batch_is_shared_equally_or_refused(processes, works):
    from contextlib import nullcontext

    from blast.errors import BlastError

    with nullcontext() if works else pytest.raises(BlastError, match="3 processes cannot share equally"):
        settings(processes=processes)


def test_a_decay_and_a_warm_up_may_fill_the_whole_run():
    assert settings(warmup=0.5, decay=0.5, learning_rate_schedule="wsd").rate(5) == pytest.approx(0.01)


def test_defaults_are_those_of_the_recorded_runs():
    """A record names what differs from these: a default that changes would change what old records mean."""
    values = settings()
    assert (values.warmup, values.decay, values.final_learning_rate) == (0.05, 0.25, 0.05)
    assert (values.weight_decay, values.clip, values.length) == (0.1, 1.0, 128)
    assert (values.evaluate_every, values.evaluate_limit) == (100, 64)
    assert (values.compile, values.cuda_graphs, values.deterministic) == (False, False, True)
    assert (values.processes, values.parallel, values.learning_rate_schedule) == (1, "average", "cosine")
