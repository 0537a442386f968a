"""Reliable timing on a GPU: CUDA graphs replayed in turn, medians with quantiles, and a check of outputs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from blast.benchmark.timing.interleaved import Timing
from blast.training.determinism import deterministic_algorithms

# Largest ‖out − reference‖ / ‖reference‖ of a whole MLP against float32. Products are rounded twice (hidden and
# output): bfloat16 to 3 digits (measured 3e-3), float16 to 4 (4e-4). float32 only sums in another order.
ERROR_BOUND = {"float32": 2e-5, "float16": 2e-3, "bfloat16": 1.2e-2}
LEAST_ROUNDS = 5

Call = Callable[[int], Any]


class Candidate(NamedTuple):
    """A way to run an MLP.

    Attributes:
        call: Runs it with the weight set of a number; returns its output.
        sets: How many weight sets there are.
        graph: Whether it is timed in a CUDA graph; else the time includes its launches.
    """

    call: Call
    sets: int
    graph: bool = True


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fills every new buffer with NaN within the body, so that an element that is never written is seen."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = filled
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@contextmanager
def plain_memory() -> Iterator[None]:
    """Turns off the filling of new buffers within the body: deterministic algorithms fill them, which takes time."""
    with deterministic_algorithms(False):
        yield


def error_of(call: Call, expected: Tensor, rows: Tensor, poison: bool = True) -> float:
    """`‖out − expected‖ / ‖expected‖` on some rows of a run; infinite if an element of the output is NaN.

    If all expected values are zero, as in an MLP whose hidden blocks are all dead, only zeros are correct.

    Args:
        call: Gives `[tokens, hidden]`.
        expected: `[rows, hidden]`, float32.
        rows: The tokens that `expected` is for.
        poison: Whether new buffers start as NaN. Use False for compiled code, which would be compiled again.
    """
    with poisoned_memory() if poison else nullcontext():
        out = call(0)
        torch.cuda.synchronize() if out.is_cuda else None
    if out.isnan().any():
        return float("inf")
    scale = expected.norm().clamp_min(torch.finfo(torch.float32).tiny)
    return ((out[rows].float() - expected).norm() / scale).item()


def sampled_rows(tokens: int, most: int, device: torch.device) -> Tensor:
    """Indices of up to `most` tokens, spread evenly from the first to the last."""
    return torch.linspace(0, tokens - 1, min(tokens, most), device=device).round().long()


def capture(candidate: Candidate) -> Callable[[], None]:
    """Gives one round of a candidate through all of its weight sets, as a CUDA graph unless `graph` is False."""

    def through_all() -> None:
        for number in range(candidate.sets):
            candidate.call(number)

    # Warm up all sets: a set may use another variant of a kernel, and nothing may compile during the capture.
    through_all()
    torch.cuda.synchronize()
    if not candidate.graph:
        return through_all
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        through_all()
    return graph.replay


def replay_of(call: Callable[[], Any]) -> Callable[[], Any]:
    """The same work as one CUDA graph, so that launches cost no time; without a GPU the call itself."""
    return capture(Candidate(lambda _: call(), 1)) if torch.cuda.is_available() else call


def time_in_turn(
    rounds: Mapping[str, tuple[Callable[[], None], int]], repeats: int, seconds: float
) -> dict[str, Timing]:
    """Times rounds in turn (A B C A B C …), so that clock drift affects all of them alike.

    Args:
        rounds: By provider: the result of `capture`, and how many calls it makes.
        repeats: Most rounds of each.
        seconds: About how long to time; at least `LEAST_ROUNDS` rounds are run.

    Returns:
        Milliseconds of one call, by provider.
    """
    for run_round, _ in rounds.values():
        run_round()
    torch.cuda.synchronize()
    clock = time.perf_counter()
    for run_round, _ in rounds.values():
        run_round()
    torch.cuda.synchronize()
    wanted = int(max(LEAST_ROUNDS, min(repeats, seconds / max(1e-6, time.perf_counter() - clock))))
    events: dict[str, list] = {name: [] for name in rounds}
    for _ in range(wanted):
        for name, (run_round, _) in rounds.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run_round()
            end.record()
            events[name].append((start, end))
    torch.cuda.synchronize()
    timings = {}
    for name, pairs in events.items():
        taken = [start.elapsed_time(end) / rounds[name][1] for start, end in pairs]
        fifths = statistics.quantiles(taken, n=5, method="inclusive")
        timings[name] = Timing(statistics.median(taken), fifths[0], fifths[3], len(taken))
    return timings
