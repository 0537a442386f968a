"""Roofline model of an MLP: its work, the ceilings of the machine, and the bound that follows."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from blast_kernels.mlp_inference.row_lists import block_counts
from blast_kernels.mlp_inference.tuned_configs import kernel_config

from blast.benchmark.inputs.mlp import MlpSize
from blast.benchmark.inputs.weights import Weights

# Read rate of the L2 cache in bytes a second, by compute capability: measured on an H100 through a matrix product's
# operands. On other GPUs, `L2_OVER_MEMORY` times the memory rate is assumed.
L2_RATE = {9: 7.2e12}
L2_OVER_MEMORY = 2.4
# Seconds between two dependent kernels of a CUDA graph, measured on an H100.
LAUNCH = 1.09e-6


class Ceilings(NamedTuple):
    """Limits of a machine: bytes a second from memory and from L2, flops a second, seconds a launch."""

    memory: float
    l2: float
    flops: float
    launch: float


class Work(NamedTuple):
    """Work of one call: flops, bytes from memory, bytes from the L2 cache (0: not modelled), kernel launches."""

    flops: float
    bytes: float
    l2: float
    launches: int


class Bound(NamedTuple):
    """The limiting resource (`memory`, `L2`, `arithmetic` or `launches`) and its least time in milliseconds."""

    name: str
    milliseconds: float


def bound_of(work: Work, ceilings: Ceilings) -> Bound:
    """The longest of the least times for memory, L2 cache, arithmetic and launches."""
    seconds = {
        "memory": work.bytes / ceilings.memory,
        "L2": work.l2 / ceilings.l2,
        "arithmetic": work.flops / ceilings.flops,
        "launches": work.launches * ceilings.launch,
    }
    name = max(seconds, key=lambda key: seconds[key])
    return Bound(name, 1e3 * seconds[name])


def sparse_work(tokens: int, size: MlpSize, weights: Weights) -> Work:
    """Work of the fused block-sparse MLP with the tiles of its kernel configs.

    Each slice of a block is multiplied with each tile of tokens, and both operands come from the L2 cache. An fp8
    weight is one byte, and each block has a scale of four bytes.

    Args:
        tokens: Rows of the activations.
        size: The MLP.
        weights: The weights; hidden blocks that were removed do not count.
    """
    item, weight_item = torch.empty(0, dtype=size.dtype).element_size(), weights.gate_up.element_size()
    # If gate and up share a mask, a column of the row list stands for a block of each.
    gate_up_rows = 2 * size.block[0] if weights.gate == "tied" else size.block[0]
    gate_up_blocks, down_blocks = _blocks(weights.gate_up_row_list), _blocks(weights.down_row_list)
    down_elements = down_blocks * size.down_block[0] * size.down_block[1]
    weight_elements = gate_up_blocks * gate_up_rows * size.block[1] + down_elements
    index = 4.0 * (weights.gate_up_row_list.numel() + weights.down_row_list.numel())
    if weights.gate_up_scales is not None:
        index += 4.0 * (gate_up_blocks + down_blocks)
    computed = weights.gate_up_row_list.shape[0] * size.block[0]
    # Hidden activations are written and read; inputs are read once and outputs written once.
    moved = weight_item * weight_elements + item * tokens * (2 * size.hidden + 2 * computed) + index
    l2 = 0.0
    for blocks, gate, count, (b_out, b_in) in (
        (gate_up_blocks, weights.gate, weights.gate_up_row_list.shape[0], size.block),
        (down_blocks, "none", weights.down_row_list.shape[0], size.down_block),
    ):
        config = kernel_config(tokens, count, blocks, b_out, b_in, gate, weights.gate_up.dtype, weights.gate_up.device)
        wide = 2 if gate == "tied" else 1
        programs = -(-tokens // config.tile) * (b_out // config.slice)
        column = item * min(config.tile, tokens) + weight_item * config.slice * wide
        l2 += blocks * programs * column * b_in
    return Work(2.0 * tokens * weight_elements, moved, l2, 2)


def dense_work(tokens: int, size: MlpSize) -> Work:
    """Work of the dense MLP; the L2 traffic of cuBLAS is not modelled."""
    item = torch.empty(0, dtype=size.dtype).element_size()
    matrices = 3 if size.gated else 2
    weight_elements = matrices * size.hidden * size.ffn
    moved = item * (weight_elements + tokens * (2 * size.hidden + 2 * size.ffn))
    return Work(2.0 * tokens * weight_elements, moved, 0.0, matrices)


@cache
def measured_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measures the ceilings of this machine with a copy of 1 GiB and a large dense product (a second in all)."""
    source = torch.randn(2**28, device=device)
    target = torch.empty_like(source)
    memory = 2 * source.nbytes / _fastest(lambda: target.copy_(source))
    side = 4096 if dtype == torch.float32 else 8192
    square = torch.randn(side, side, device=device, dtype=dtype)
    flops = 2 * side**3 / _fastest(lambda: square @ square.t())
    major = torch.cuda.get_device_capability(device)[0]
    return Ceilings(memory, L2_RATE.get(major, L2_OVER_MEMORY * memory), flops, LAUNCH)


def _fastest(call, rounds: int = 20) -> float:
    """Seconds of the fastest call, since a ceiling is wanted and not a typical time."""
    taken = []
    for _ in range(rounds):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        taken.append(start.elapsed_time(end) / 1e3)
    return min(taken)


def _blocks(row_list: torch.Tensor) -> int:
    """How many blocks a row list names."""
    return int(block_counts(row_list).sum()) if row_list.numel() else 0
