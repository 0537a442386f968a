"""Times that several processes take together: all start at one time, and the slowest of them counts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from blast.benchmark.timing.cuda_graphs import LEAST_ROUNDS
from blast.benchmark.timing.interleaved import Timing
from blast.tensor_parallel.processes import Processes

Round = Callable[[], Any]


def captured(work: Round, device: torch.device) -> Round:
    """The same work as a CUDA graph; without a GPU the work itself.

    All processes capture at one time, since the work may hold all-reduces.
    """
    if device.type != "cuda":
        return work
    for _ in range(2):  # compiles kernels, and connects the GPUs
        work()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    # The thread of NCCL asks for events meanwhile; that must not end the capture.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        work()
    return graph.replay


def time_together(
    rounds: Mapping[str, tuple[Round, int]],
    processes: Processes,
    device: torch.device,
    repeats: int,
    seconds: float,
) -> dict[str, Timing]:
    """Times rounds in turn (A B C A B C …). Every process calls this with the same names.

    Args:
        rounds: By name: the work, and how many calls it makes.
        processes: The processes.
        device: The device of this process.
        repeats: Most rounds of each.
        seconds: About how long to time; at least `LEAST_ROUNDS` rounds are run.

    Returns:
        Milliseconds of one call by name: of the slowest process in each round.
    """
    start = torch.zeros(1, device=device)
    taken: dict[str, list[float]] = {name: [] for name in rounds}

    def once(work: Round) -> float:
        processes.add_up(start)  # waits for all
        if device.type != "cuda":
            before = time.perf_counter()
            work()
            return 1e3 * (time.perf_counter() - before)
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        events[0].record()
        work()
        events[1].record()
        events[1].synchronize()
        return events[0].elapsed_time(events[1])

    for work, _ in rounds.values():
        once(work)
    one_turn = max(processes.gather(sum(once(work) for work, _ in rounds.values())))
    wanted = int(max(LEAST_ROUNDS, min(repeats, 1e3 * seconds / max(1e-3, one_turn))))
    for _ in range(wanted):
        for name, (work, calls) in rounds.items():
            taken[name].append(once(work) / calls)
    of_all = processes.gather(taken)
    return {
        name: _timing([max(same) for same in zip(*(each[name] for each in of_all), strict=True)]) for name in rounds
    }


def _timing(values: list[float]) -> Timing:
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return Timing(statistics.median(values), fifths[0], fifths[3], len(values))
