"""How often the training state is saved: writing takes a small share of the time, whatever its size and the disk."""

from __future__ import annotations

import pytest
from torch import nn

from blast.training.checkpoint import WRITING_SHARE, SaveInterval, state_bytes

STEP = 0.2
HOUR = 3600.0


class Clock:
    """A clock that stands still until it is told how much time went by."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def simulated(size: float, speed: float, seconds: float = 20.0, hours: float = 1.0) -> tuple[list[float], float, float]:
    """The times of the writes of a training, the seconds it wrote, and its length."""
    clock = Clock()
    interval, times, wrote = SaveInterval(seconds, int(size), clock), [], 0.0
    end = clock.now + hours * HOUR
    while clock.now < end:
        clock.now += STEP
        if interval.due:
            with interval.writing():
                clock.now += size / speed
            wrote += size / speed
            times.append(clock.now)
    return times, wrote, hours * HOUR


@pytest.mark.parametrize("speed", [2e9, 500e6, 400e6, 200e6])
def test_a_state_of_1_6_gb_takes_a_few_percent_of_the_time_at_most(speed):
    times, wrote, length = simulated(1.6e9, speed)
    assert len(times) >= 3
    assert wrote / length <= 0.03


@pytest.mark.fault(
    fault="The state of a training is large and the disk is slow.",
    topic="Disks, outputs and commands",
    happens="The state is saved less often.",
    lost="nothing; after a kill, a longer stretch is done again",
)
def test_a_disk_that_is_much_slower_than_assumed_is_found_out_at_the_first_write():
    times, wrote, length = simulated(1.6e9, 50e6, hours=10)
    assert wrote / length <= WRITING_SHARE + 0.002
    assert times[1] - times[0] == pytest.approx(1.6e9 / 50e6 / WRITING_SHARE, rel=0.01)


def test_a_small_state_is_saved_as_often_as_the_config_says():
    times, _, length = simulated(1e6, 500e6)
    assert len(times) == pytest.approx(length / 20.0, rel=0.02)


def test_no_interval_saves_after_every_step():
    clock = Clock()
    interval = SaveInterval(0, 10**10, clock)
    assert interval.due
    with interval.writing():
        clock.now += 60
    assert interval.due


def test_a_write_that_fails_is_not_counted():
    clock = Clock()
    interval = SaveInterval(20, 0, clock)
    clock.now += 30

    def failing() -> None:
        with interval.writing():
            clock.now += 5
            raise OSError

    with pytest.raises(OSError):
        failing()
    assert interval.seconds == 20
    assert interval.due


def test_the_state_holds_the_weights_and_two_moments_of_each():
    assert state_bytes(nn.Linear(10, 20, bias=False)) == 3 * 4 * 200
