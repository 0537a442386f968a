"""The steps at which masks are updated, blocks grow, and masks are fixed."""

from __future__ import annotations

import pytest

from blast.sparsity.clock import StepClock
from blast.sparsity.config import SparsifyConfig


@pytest.mark.parametrize(
    ("settings", "growing", "by_gradient"),
    [
        ({}, [0, 3, 6], [0, 3, 6]),
        ({"grow_score": "random"}, [0, 3, 6], []),
        ({"grow": "none"}, [], []),
    ],
)
def test_blocks_grow_at_the_updates_before_the_last(settings, growing, by_gradient):
    clock = StepClock(SparsifyConfig(sparsity=0.5, block=8, steps=10, hold=0.2, update_every=3, **settings))
    updates, grown, dense_gradients = [], [], []
    for clock.step_count in range(10):
        for due, found in (
            (clock.update_due, updates),
            (clock.growth_due, grown),
            (clock.dense_gradient_due, dense_gradients),
        ):
            if due:
                found.append(clock.step_count)
        clock.finished = clock.finished or clock.last_update
    assert updates == [0, 3, 6, 8]
    assert (grown, dense_gradients) == (growing, by_gradient)
