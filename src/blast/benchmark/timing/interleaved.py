"""Reliable timing: warm-up, interleaved calls, medians with quantiles."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch


class Timing(NamedTuple):
    """Milliseconds of one call: median, 20 % and 80 % quantile; `n` calls were timed."""

    median: float
    low: float
    high: float
    n: int


def _once(call: Callable[[], object], device: torch.device, clock: Callable[[], int]) -> float:
    """Milliseconds of one call; on a GPU between two events."""
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)
    before = clock()
    call()
    return (clock() - before) / 1e6


def time_interleaved(
    calls: Mapping[str, Callable[[], object]],
    device: torch.device,
    repeats: int,
    warmup: int = 3,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> dict[str, Timing]:
    """Times several calls in turn (A B C A B C …), so that drift of the machine affects all of them alike.

    Args:
        calls: What to time, by provider.
        device: Device that the calls run on.
        repeats: Timed calls of each.
        warmup: Calls of each before that, which are not timed.
        clock: Nanoseconds, for a CPU. `time.thread_time_ns` leaves out the time that other programs take from the
            calling thread, and that of other threads.

    Returns:
        The timing of one call, by provider.
    """
    for call in calls.values():
        for _ in range(warmup):
            call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            taken[name].append(_once(call, device, clock))
    timings = {}
    for name, values in taken.items():
        if len(values) < 2:
            timings[name] = Timing(values[0], values[0], values[0], 1)
            continue
        fifths = statistics.quantiles(values, n=5, method="inclusive")
        timings[name] = Timing(statistics.median(values), fifths[0], fifths[3], len(values))
    return timings
