"""The parts of a decoding step: MLPs and head alone, the gaps between kernels, and the rest."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from blast.benchmark.step.breakdown import mlp_names
from blast.benchmark.timing.cuda_graphs import LEAST_ROUNDS, replay_of, time_in_turn
from blast.benchmark.timing.interleaved import Timing
from blast.generation.session import Session, likeliest

REPEATS, SECONDS = 20, 2.0
WARM_UP = 3


@torch.no_grad()
def part_times(
    model: nn.Module, session: Session, steps: tuple[Callable[[], None], int], step: float
) -> dict[str, float]:
    """Milliseconds of the parts of a step.

    The MLPs of all layers run one after the other as one CUDA graph, each with weights of its own; so do head and
    choice of the token. Compiled dense MLPs are compiled as in the step. The gaps are what the kernels of a replayed
    step leave of its time. The rest is attention with its projections, norms and embeddings.

    Args:
        model: The model.
        session: Its session.
        steps: A round of steps, and how many it has.
        step: Milliseconds of a step.

    Returns:
        `mlp`, `head`, `rest`, and on a GPU `gaps`, which lie within the others.
    """
    any_model: Any = model
    width = any_model.get_output_embeddings().weight.shape[1]
    dtype = next(model.parameters()).dtype
    x = torch.randn(session.batch, 1, width, device=session.tokens.device, dtype=dtype)
    mlps = [model.get_submodule(name) for name in mlp_names(model)]
    compiled = session.compiled != "no" and not _sparse(mlps)
    run = torch.compile(_run_one, dynamic=False, mode=session.mode) if compiled else _run_one

    def all_mlps() -> None:
        with session.merged.active():
            for mlp in mlps:
                run(mlp, x)

    def head() -> None:
        likeliest(any_model.get_output_embeddings()(x[:, -1]).float())

    rounds = {"mlp": (replay_of(all_mlps), 1), "head": (replay_of(head), 1)}
    found = {name: timing.median for name, timing in time_in_turn(rounds, REPEATS, SECONDS).items()}
    found["rest"] = max(0.0, step - sum(found.values()))
    if session.graphs:
        found["gaps"] = max(0.0, step - _kernel_time(steps))
    return found


@torch.no_grad()
def host_times(model: nn.Module, sequences: int, rounds: int) -> Timing:
    """Milliseconds that the CPU takes to start an MLP, eagerly, as `generate` calls it by default.

    The MLPs of all layers are started one after the other, and nothing waits for the GPU in between.

    Args:
        model: The model.
        sequences: Tokens of a call.
        rounds: How often all MLPs are started, at least `LEAST_ROUNDS` times.
    """
    rounds = max(LEAST_ROUNDS, rounds)
    any_model: Any = model
    head = any_model.get_output_embeddings().weight
    x = torch.randn(sequences, 1, head.shape[1], device=head.device, dtype=head.dtype)
    mlps = [model.get_submodule(name) for name in mlp_names(model)]
    taken = []
    for _ in range(WARM_UP + rounds):
        start = time.perf_counter()
        for mlp in mlps:
            mlp(x)
        taken.append(1e3 * (time.perf_counter() - start) / len(mlps))
        if x.is_cuda:
            torch.cuda.synchronize()
    fifths = statistics.quantiles(taken[WARM_UP:], n=5, method="inclusive")
    return Timing(statistics.median(taken[WARM_UP:]), fifths[0], fifths[3], rounds)


def _run_one(mlp: nn.Module, x: torch.Tensor) -> Any:
    return mlp(x)


def _sparse(mlps: list[nn.Module]) -> bool:
    from blast.layers.sparse_mlp import SparseMlp

    return any(isinstance(mlp, SparseMlp) for mlp in mlps)


def _kernel_time(steps: tuple[Callable[[], None], int]) -> float:
    """Milliseconds that kernels run in a step, of a profiled round."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        steps[0]()
        torch.cuda.synchronize()
    return sum(event.device_time for event in profiled.events()) / 1e3 / steps[1]
