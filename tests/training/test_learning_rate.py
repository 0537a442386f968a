"""The learning rate at each step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blast.errors import BlastError
from blast.experiment.plan.config import parse
from blast.experiment.plan.grid import expand
from blast.settings import plain
from blast.training.settings import TrainingSettings

BASE = {"steps": 100, "batch": 4, "learning_rate": 0.01}


def rates(**settings):
    made = TrainingSettings.from_dict(BASE | settings)
    return [made.rate(step) for step in range(made.steps)]


def test_wsd_rises_stays_at_its_peak_and_falls_linearly_to_nothing():
    got = rates(learning_rate_schedule="wsd", warmup=0.1, decay=0.2, final_learning_rate=0)
    assert got[:10] == pytest.approx([0.001 * (step + 1) for step in range(10)])
    assert got[10:81] == [0.01] * 71
    assert got[80:] == pytest.approx([0.01 * (100 - step) / 20 for step in range(80, 100)])


def test_wsd_ends_at_the_share_that_is_asked_for():
    got = rates(learning_rate_schedule="wsd", warmup=0, decay=0.5, final_learning_rate=0.1)
    # The step after the last would have exactly the final rate, as with a cosine.
    assert got[-1] == pytest.approx(0.01 * (0.1 + 0.9 / 50))


def test_wsd_without_a_decay_stays_at_its_peak():
    assert rates(learning_rate_schedule="wsd", warmup=0, decay=0) == [0.01] * 100


@given(
    schedule=st.sampled_from(["cosine", "wsd"]),
    steps=st.integers(1, 60),
    warmup=st.floats(0, 0.5),
    decay=st.floats(0, 0.5),
    final=st.floats(0, 1),
)
def test_a_rate_never_exceeds_the_peak_and_never_rises_after_the_warmup(schedule, steps, warmup, decay, final):
    settings = {"warmup": warmup, "decay": decay, "final_learning_rate": final, "steps": steps}
    got = rates(learning_rate_schedule=schedule, **settings)
    rise = max(1, round(warmup * steps))
    assert all(0 < rate <= 0.01 * (1 + 1e-12) for rate in got)
    assert all(earlier >= later - 1e-12 for earlier, later in zip(got[rise - 1 :], got[rise:], strict=False))


def test_a_schedule_whose_parts_exceed_the_run_is_refused():
    with pytest.raises(BlastError, match=r"'warmup' 0\.6 and 'decay' 0\.5 together exceed the run; lower one"):
        rates(learning_rate_schedule="wsd", warmup=0.6, decay=0.5)
    assert len(rates(warmup=0.6, decay=0.5)) == 100  # a cosine has no decay of its own


def test_settings_of_before_keep_their_plain_form():
    assert not {"learning_rate_schedule", "decay"} & plain(TrainingSettings.from_dict(BASE)).keys()
    with_wsd = TrainingSettings.from_dict(BASE | {"learning_rate_schedule": "wsd", "decay": 0.3})
    assert (plain(with_wsd)["learning_rate_schedule"], plain(with_wsd)["decay"]) == ("wsd", 0.3)
    assert TrainingSettings.from_dict(plain(with_wsd)) == with_wsd


def holds(sparsify, **training):
    values = {
        "name": "holds",
        "training": {"default": BASE | training},
        "sparsify": sparsify,
        "grid": [{"architectures": ["vit-nano"], "datasets": ["digits"], "sparsity": [0.5]}],
    }
    (point,) = (point for point in expand(parse(values, "grid.yaml")).points.values() if point.sparsify)
    return point.sparsify["hold"]


def test_masks_are_fixed_when_wsd_begins_to_decay_unless_the_config_says_otherwise():
    assert holds({}) == 0.2
    assert holds({}, learning_rate_schedule="wsd") == 0.25
    assert holds({}, learning_rate_schedule="wsd", decay=0.4) == 0.4
    assert holds({"hold": 0.5}, learning_rate_schedule="wsd", decay=0.4) == 0.5
