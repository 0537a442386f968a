"""Timing on a GPU that can be trusted: CUDA graphs, replayed in turn, medians with quantiles, correct outputs first."""

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

# Largest ‖out − reference‖ / ‖reference‖ of a whole MLP against float32: each dtype rounds weights' products twice
# (hidden and output), bfloat16 to 3 digits (measured 3e-3), float16 to 4 (4e-4); float32 sums in another order.
ERROR_BOUND = {"float32": 2e-5, "float16": 2e-3, "bfloat16": 1.2e-2}
LEAST_ROUNDS = 5

Call = Callable[[int], Any]


class Candidate(NamedTuple):
    """A way to run an MLP.

    Attributes:
        call: Runs it with the weight set of that number; returns its output.
        sets: How many weight sets there are.
        graph: Whether it is timed in a CUDA graph; else between events, launches included.
    """

    call: Call
    sets: int
    graph: bool = True


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Within, every fresh buffer starts as NaN, so that an element nobody writes is seen."""
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
    """Within, buffers are not filled: deterministic algorithms fill each of them, and that would be timed."""
    with deterministic_algorithms(False):
        yield


def error_of(call: Call, expected: Tensor, rows: Tensor, poison: bool = True) -> float:
    """`‖out − expected‖ / ‖expected‖` on some rows of a run; infinite if any element of the output is NaN.

    Where all that is expected is zero, as of an MLP without a block that anyone reads, only zeros are right.

    Args:
        call: Gives `[tokens, hidden]`.
        expected: `[rows, hidden]`, float32.
        rows: Which tokens `expected` is of.
        poison: Whether fresh buffers start as NaN; not for compiled code, which would be compiled again for that.
    """
    with poisoned_memory() if poison else nullcontext():
        out = call(0)
        torch.cuda.synchronize() if out.is_cuda else None
    if out.isnan().any():
        return float("inf")
    scale = expected.norm().clamp_min(torch.finfo(torch.float32).tiny)
    return ((out[rows].float() - expected).norm() / scale).item()


def sampled_rows(tokens: int, most: int, device: torch.device) -> Tensor:
    """Up to `most` tokens, spread evenly, the first and the last among them."""
    return torch.linspace(0, tokens - 1, min(tokens, most), device=device).round().long()


def capture(candidate: Candidate) -> Callable[[], None]:
    """One round of a candidate through all of its weight sets, as a graph if it can be one."""

    def through_all() -> None:
        for number in range(candidate.sets):
            candidate.call(number)

    # All of them: a set may call for another variant of a kernel, and none may be compiled during the capture.
    through_all()
    torch.cuda.synchronize()
    if not candidate.graph:
        return through_all
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        through_all()
    return graph.replay


def replay_of(play: Callable[[], Any]) -> Callable[[], Any]:
    """The same work on the GPU as one graph, however long launching it takes; on a processor the call itself."""
    return capture(Candidate(lambda _: play(), 1)) if torch.cuda.is_available() else play


def time_in_turn(
    rounds: Mapping[str, tuple[Callable[[], None], int]], repeats: int, seconds: float
) -> dict[str, Timing]:
    """Times rounds in turn (A B C A B C …), so that a drift of clocks hits all alike.

    Args:
        rounds: By provider: what `capture` gave, and how many calls it makes.
        repeats: Most rounds of each.
        seconds: About how long to go on; at least `LEAST_ROUNDS` rounds are made.

    Returns:
        Milliseconds of one call, by provider.
    """
    for play, _ in rounds.values():
        play()
    torch.cuda.synchronize()
    clock = time.perf_counter()
    for play, _ in rounds.values():
        play()
    torch.cuda.synchronize()
    wanted = int(max(LEAST_ROUNDS, min(repeats, seconds / max(1e-6, time.perf_counter() - clock))))
    events: dict[str, list] = {name: [] for name in rounds}
    for _ in range(wanted):
        for name, (play, _) in rounds.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            play()
            end.record()
            events[name].append((start, end))
    torch.cuda.synchronize()
    timings = {}
    for name, pairs in events.items():
        taken = [start.elapsed_time(end) / rounds[name][1] for start, end in pairs]
        fifths = statistics.quantiles(taken, n=5, method="inclusive")
        timings[name] = Timing(statistics.median(taken), fifths[0], fifths[3], len(taken))
    return timings
