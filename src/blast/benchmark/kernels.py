"""The `kernels` suite: the fused block-sparse MLP of a real shape on a GPU, compared with dense and with peers.

All providers of one number of tokens are timed in turn in one run. Dense has random weights without masks. The output
of a provider must agree with a float32 reference before it is timed. The suite needs a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from blast import architectures
from blast.benchmark.inputs.masks import masks_folder
from blast.benchmark.inputs.mlp import MlpSize
from blast.benchmark.providers.entries import Request, latency_entry, missing_entry, work_entries
from blast.benchmark.providers.mlp_inference import (
    TRIAL,
    Case,
    Machine,
    Provider,
    dense_providers,
    first_line,
    our_providers,
)
from blast.benchmark.providers.peers import peer_providers
from blast.benchmark.timing.cuda_graphs import ERROR_BOUND, capture, plain_memory, time_in_turn
from blast.benchmark.timing.device import gpu_for
from blast.benchmark.timing.roofline import measured_ceilings
from blast.errors import BlastError, unknown_name

DOWN_BLOCKS = ("same", "transposed")
# A whole MLP in one launch is for so many tokens.
SINGLE_TOKENS = 16


def measure(
    architecture: str, sparsity: float, block: tuple[int, int], seed: int, settings: dict[str, Any]
) -> list[dict[str, Any]]:
    """Times the MLP of an architecture.

    Args:
        architecture: Name of the architecture.
        sparsity: Share of empty blocks.
        block: Block shape `[out, in]`.
        seed: Seed of weights, masks and inputs.
        settings: `tokens` (list), `dtype`, `repeats`, and the fields of
            `blast.benchmark.settings.KernelsSettings`.

    Returns:
        By provider and number of tokens: `latency` in ms with 20 % and 80 % quantiles, and the roofline model
        (`flops`, `bytes`, `l2_traffic`, `launches`, `roofline_fraction`). A provider that cannot run has an entry
        without a value; its `status` and `cause` say why.

    Raises:
        BlastError: without a GPU, for an unknown name, or if our own output does not match the reference.
    """
    if settings["dtype"] not in ERROR_BOUND:
        raise unknown_name("dtype", settings["dtype"], ERROR_BOUND)
    started = time.monotonic()
    size = mlp_size(architecture, block, settings["dtype"], settings["down_block"])
    machine = this_machine(size.dtype)
    metrics: list[dict[str, Any]] = []
    with torch.inference_mode(), plain_memory():
        case = Case(architecture, size, sparsity, seed, machine, masks_folder(settings["masks_folder"]))
        for tokens in settings["tokens"]:
            left = settings["seconds"] - (time.monotonic() - started)
            metrics += _measure_tokens(case, tokens, left, settings)
    return metrics


def mlp_size(architecture: str, block: tuple[int, int], dtype: str, down_block: str = "same") -> MlpSize:
    """The MLP of an architecture.

    A gated MLP has SiLU and no biases. A plain MLP has biases and GELU, in language models its tanh form.

    Raises:
        BlastError: if `down_block` is neither `same` nor `transposed`.
    """
    if down_block not in DOWN_BLOCKS:
        raise unknown_name("down_block", down_block, DOWN_BLOCKS)
    known = architectures.get(architecture)
    shape = known.shape
    activation = "silu" if shape.gated else "gelu_tanh" if known.modality == "language" else "gelu"
    sides = (block[0], block[1])
    size = MlpSize(shape.hidden, shape.ffn, shape.gated, activation, not shape.gated, sides, getattr(torch, dtype))
    return size._replace(transposed_down=down_block == "transposed")


def this_machine(dtype: torch.dtype) -> Machine:
    """The GPU and its measured ceilings.

    Raises:
        BlastError: if there is no GPU.
    """
    device = gpu_for("kernels")
    properties = torch.cuda.get_device_properties(device)
    with torch.inference_mode(), plain_memory():
        ceilings = measured_ceilings(device, dtype)
    return Machine(device, properties.L2_cache_size, ceilings)


def _measure_tokens(case: Case, tokens: int, left: float, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of one number of tokens, ours first."""
    request = Request(case, tokens, settings["dtype"])
    if left <= 0:
        cause = "the point ran out of time; raise 'seconds' or split the point"
        return [missing_entry(request, "ours", cause) | {"unfinished": True}]
    fp8 = settings["fp8"] and tokens <= settings["fp8_tokens"]
    providers = our_providers(
        case, tokens, settings["masks"], settings["tied"], fp8, settings["single_launch"] and tokens <= SINGLE_TOKENS
    )
    providers += dense_providers(case, tokens, settings["compiled"])
    providers += peer_providers(case, tokens, settings["peers"], settings["tuning_seconds"])
    rounds, runnable, missing = {}, {}, []
    for provider in providers:
        name = provider.key
        if provider.cause is None:
            provider = _checked(provider, settings["dtype"])
        if provider.cause is None:
            provider, run_round = _captured(provider)
            if run_round is not None:
                rounds[name], runnable[name] = (run_round, provider.candidate.sets), provider
        if provider.cause is not None:
            ours = provider.name.startswith("ours") and not provider.name.startswith(TRIAL)
            if ours and provider.status == "failed":
                raise BlastError(f"{provider.name} at {tokens} tokens: {provider.cause}.")
            missing.append(missing_entry(request, provider.name, provider.cause, provider.status, provider))
    share = max(0.2, min(2.0, 0.5 * left / len(settings["tokens"])))
    timings = time_in_turn(rounds, settings["repeats"], share)
    entries = [latency_entry(request, runnable[name], timing) for name, timing in timings.items()]
    for name, timing in timings.items():
        entries += work_entries(request, runnable[name], timing)
    return entries + missing


def _captured(provider: Provider) -> tuple[Provider, Callable[[], None] | None]:
    """The provider and one round of its calls. A peer that cannot be captured in a CUDA graph runs without one."""
    try:
        return provider, capture(provider.candidate)
    except torch.OutOfMemoryError:
        raise
    except Exception as fault:  # a peer may raise anything
        if provider.peer and provider.candidate.graph:
            torch.cuda.synchronize()
            return _captured(provider._replace(candidate=provider.candidate._replace(graph=False)))
        return provider.without(first_line(fault), "failed"), None


def _checked(provider: Provider, dtype: str) -> Provider:
    """The provider with its error; marked as failed if its output is wrong or it cannot run."""
    try:
        error = provider.check() if provider.check else None
    except Exception as fault:  # a peer may raise anything
        if isinstance(fault, torch.OutOfMemoryError):
            raise
        return provider.without(first_line(fault), "failed")
    if error is not None and not error <= ERROR_BOUND[dtype]:
        return provider.without(
            f"its output is off by {error:.1e} from the float32 reference (bound {ERROR_BOUND[dtype]:.0e})", "failed"
        )
    return provider._replace(error=error)
