"""The `training_mlp` suite: forward and backward of the block-sparse MLP of a real shape, compared with dense and stk.

All providers of one number of tokens are timed in turn in one run, as CUDA graphs if they can be captured. Dense has
random weights without masks. Output and gradients must agree with a float32 reference before a provider is timed. There
is one set of weights: the activations of 8192 tokens alone exceed the cache.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import torch

from blast.benchmark.inputs.masks import live_share, training_masks
from blast.benchmark.inputs.mlp import MlpSize
from blast.benchmark.inputs.weights import sparse_weights
from blast.benchmark.kernels import mlp_size
from blast.benchmark.providers.entries import Request, latency_entry, missing_entry
from blast.benchmark.providers.mlp_inference import Provider, first_line
from blast.benchmark.providers.mlp_training import Task, dense_providers, expected_step, our_provider, stk_provider
from blast.benchmark.timing.cuda_graphs import ERROR_BOUND, capture, plain_memory, time_in_turn
from blast.benchmark.timing.device import gpu_for
from blast.errors import BlastError, unknown_name

PEERS = ("stk",)


class Case(NamedTuple):
    """The MLP of a point."""

    size: MlpSize
    sparsity: float
    seed: int
    device: torch.device


def measure(
    architecture: str, sparsity: float, block: tuple[int, int], seed: int, settings: dict[str, Any]
) -> list[dict[str, Any]]:
    """Times a forward and backward pass of the MLP of an architecture.

    Args:
        architecture: Name of the architecture.
        sparsity: Share of empty blocks.
        block: Block shape `[out, in]`; square.
        seed: Seed of weights, masks and inputs.
        settings: `tokens` (list), `dtype`, `repeats`, and the fields of
            `blast.benchmark.settings.TrainingMlpSettings`.

    Returns:
        By provider and number of tokens: `latency` of forward and backward in ms with 20 % and 80 % quantiles. Entries
        of ours have the share of live hidden blocks (`live_hidden`). A provider that cannot run has an entry without
        a value; its `status` and `cause` say why.

    Raises:
        BlastError: without a GPU, for an unknown name, or if our own output or a gradient does not match.
    """
    if settings["dtype"] not in ERROR_BOUND:
        raise unknown_name("dtype", settings["dtype"], ERROR_BOUND)
    for peer in settings["peers"]:
        if peer not in PEERS:
            raise unknown_name("peer", peer, PEERS)
    if block[0] != block[1]:
        raise BlastError(f"the suite 'training_mlp' needs square blocks, not {block[0]}x{block[1]}; give one side.")
    started = time.monotonic()
    size = mlp_size(architecture, block, settings["dtype"])
    case = Case(size, sparsity, seed, gpu_for("training_mlp"))
    metrics: list[dict[str, Any]] = []
    with plain_memory():
        for tokens in settings["tokens"]:
            left = settings["seconds"] - (time.monotonic() - started)
            metrics += _measure_tokens(case, tokens, left, settings)
    return metrics


def _measure_tokens(case: Case, tokens: int, left: float, settings: dict[str, Any]) -> list[dict[str, Any]]:
    request = Request(case, tokens, settings["dtype"])
    if left <= 0:
        cause = "the point ran out of time; raise 'seconds' or split the point"
        return [missing_entry(request, "ours", cause) | {"unfinished": True}]
    rounds, runnable, missing = {}, {}, []
    for provider in _providers(case, tokens, settings):
        provider = _checked(provider, settings["dtype"])
        if provider.cause is None:
            provider, run_round = _captured(provider)
            if run_round is not None:
                rounds[provider.key], runnable[provider.key] = (run_round, 1), provider
        if provider.cause is not None:
            if provider.name == "ours" and provider.status == "failed":
                raise BlastError(f"{provider.name} at {tokens} tokens: {provider.cause}.")
            missing.append(missing_entry(request, provider.name, provider.cause, provider.status, provider))
    share = max(0.5, min(4.0, 0.5 * left / len(settings["tokens"])))
    timings = time_in_turn(rounds, settings["repeats"], share)
    return [latency_entry(request, runnable[name], timing) for name, timing in timings.items()] + missing


def _providers(case: Case, tokens: int, settings: dict[str, Any]) -> list[Provider]:
    """The requested providers, ours first."""
    size, generator = case.size, torch.Generator(case.device).manual_seed(10_000 * case.seed + tokens)
    shape = (tokens, size.hidden)
    x, grad = (torch.randn(shape, generator=generator, device=case.device).to(size.dtype) for _ in range(2))
    task, providers, for_peers = Task(size, x, grad), [], []
    for kind in settings["masks"]:
        for tied in sorted({tied and size.gated for tied in settings["tied"]}):
            masks = training_masks(kind, size, tied, case.sparsity, generator)
            if masks is None:
                flag = tied if size.gated else None
                cause = "at this sparsity there are fewer live blocks than hidden blocks, so that some are dead"
                providers.append(
                    Provider("ours", f"ours {kind} {tied}", tied=flag, setting={"mask": kind}).without(cause)
                )
                continue
            weights = sparse_weights(size, masks, tied, generator)
            expected = expected_step(task, weights)
            facts = {"mask": kind, "live_hidden": round(live_share(masks), 6)}
            providers.append(our_provider(task, weights, expected, facts))
            if kind == "uniform" and not tied:
                for_peers = [stk_provider(task, weights, expected) for _ in settings["peers"]]
    return providers + dense_providers(task, generator, settings["compiled"]) + for_peers


def _captured(provider: Provider) -> tuple[Provider, Any]:
    """The provider and one round of its calls. If it cannot be captured in a CUDA graph, it runs without one."""
    try:
        return provider, capture(provider.candidate)
    except torch.OutOfMemoryError:
        raise
    except Exception as fault:  # a peer may raise anything, and the compiler too
        if provider.name != "ours" and provider.candidate.graph:
            torch.cuda.synchronize()
            return _captured(provider._replace(candidate=provider.candidate._replace(graph=False)))
        return provider.without(first_line(fault), "failed"), None


def _checked(provider: Provider, dtype: str) -> Provider:
    """The provider with its largest error; marked as failed if a result is wrong or it cannot run."""
    if provider.cause is not None or provider.check is None:
        return provider
    try:
        error = provider.check()
    except torch.OutOfMemoryError:
        raise
    except Exception as fault:  # a peer may raise anything
        return provider.without(first_line(fault), "failed")
    if not error <= ERROR_BOUND[dtype]:
        return provider.without(
            f"its output or a gradient is off by {error:.1e} from the float32 reference "
            f"(bound {ERROR_BOUND[dtype]:.0e})",
            "failed",
        )
    return provider._replace(error=error)
