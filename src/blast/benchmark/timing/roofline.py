"""What an MLP has to move and compute, and how fast a machine could: which bound binds, and what share was reached."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from blast_kernels.mlp_inference.tuned_configs import kernel_config

from blast.benchmark.inputs.mlp import MlpSize
from blast.benchmark.inputs.weights import Weights

# Re-reading the L2 cache, bytes a second by compute capability: measured on an H100 through a matrix product's
# operands. Elsewhere this many times the memory's rate is assumed.
L2_RATE = {9: 7.2e12}
L2_OVER_MEMORY = 2.4
# Seconds between two dependent kernels of a CUDA graph, measured on an H100.
LAUNCH = 1.09e-6


class Ceilings(NamedTuple):
    """What a machine reaches: bytes a second from memory and from L2, flops a second, seconds a launch."""

    memory: float
    l2: float
    flops: float
    launch: float


class Work(NamedTuple):
    """What one call has to do: flops, bytes of memory, bytes from the L2 cache (0: not modelled), kernels."""

    flops: float
    bytes: float
    l2: float
    launches: int


class Bound(NamedTuple):
    """The bound that binds (`memory`, `L2`, `arithmetic` or `launches`) and the milliseconds it allows."""

    name: str
    milliseconds: float


def bound_of(work: Work, ceilings: Ceilings) -> Bound:
    """The largest of the times that memory, cache, arithmetic and launches take at least."""
    seconds = {
        "memory": work.bytes / ceilings.memory,
        "L2": work.l2 / ceilings.l2,
        "arithmetic": work.flops / ceilings.flops,
        "launches": work.launches * ceilings.launch,
    }
    name = max(seconds, key=lambda key: seconds[key])
    return Bound(name, 1e3 * seconds[name])


def sparse_work(tokens: int, size: MlpSize, weights: Weights) -> Work:
    """The work of the fused block-sparse MLP with the tiles that its config chooses.

    Each of a block's slices is multiplied with each tile of tokens, and both operands come from the L2 cache. Weights
    in fp8 are a byte each, and four for the scale of a block.

    Args:
        tokens: Rows of the activations.
        size: The MLP.
        weights: What is live; hidden blocks left out do not count.
    """
    item, weight_item = torch.empty(0, dtype=size.dtype).element_size(), weights.front.element_size()
    front_rows = 2 * size.block[0] if weights.gate == "tied" else size.block[0]
    front_blocks, down_blocks = _blocks(weights.front_records), _blocks(weights.down_records)
    down_elements = down_blocks * size.down_block[0] * size.down_block[1]
    weight_elements = front_blocks * front_rows * size.block[1] + down_elements
    index = 4.0 * (weights.front_records.numel() + weights.down_records.numel())
    if weights.front_scales is not None:
        index += 4.0 * (front_blocks + down_blocks)
    computed = weights.front_records.shape[0] * size.block[0]
    # The hidden activations are written and read, the outer ones touched once.
    moved = weight_item * weight_elements + item * tokens * (2 * size.hidden + 2 * computed) + index
    l2 = 0.0
    for blocks, gate, count, (b_out, b_in) in (
        (front_blocks, weights.gate, weights.front_records.shape[0], size.block),
        (down_blocks, "none", weights.down_records.shape[0], size.down_block),
    ):
        config = kernel_config(tokens, count, blocks, b_out, b_in, gate, weights.front.dtype, weights.front.device)
        wide = 2 if gate == "tied" else 1
        programs = -(-tokens // config.tile) * (b_out // config.slice)
        column = item * min(config.tile, tokens) + weight_item * config.slice * wide
        l2 += blocks * programs * column * b_in
    return Work(2.0 * tokens * weight_elements, moved, l2, 2)


def dense_work(tokens: int, size: MlpSize) -> Work:
    """The work of the dense MLP; the cache traffic of cuBLAS is not known."""
    item = torch.empty(0, dtype=size.dtype).element_size()
    matrices = 3 if size.gated else 2
    weight_elements = matrices * size.hidden * size.ffn
    moved = item * (weight_elements + tokens * (2 * size.hidden + 2 * size.ffn))
    return Work(2.0 * tokens * weight_elements, moved, 0.0, matrices)


@cache
def measured_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Ceilings of this machine, measured now: a copy of 1 GiB and a large dense product (a second in all)."""
    source = torch.randn(2**28, device=device)
    target = torch.empty_like(source)
    memory = 2 * source.nbytes / _fastest(lambda: target.copy_(source))
    side = 4096 if dtype == torch.float32 else 8192
    square = torch.randn(side, side, device=device, dtype=dtype)
    flops = 2 * side**3 / _fastest(lambda: square @ square.t())
    major = torch.cuda.get_device_capability(device)[0]
    return Ceilings(memory, L2_RATE.get(major, L2_OVER_MEMORY * memory), flops, LAUNCH)


def _fastest(call, rounds: int = 20) -> float:
    """Seconds of the fastest of some calls: a ceiling, not a typical time."""
    taken = []
    for _ in range(rounds):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        taken.append(start.elapsed_time(end) / 1e3)
    return min(taken)


def _blocks(records: torch.Tensor) -> int:
    """Blocks that some records name."""
    return int((records[:, 3] - records[:, 1]).sum()) if records.numel() else 0
