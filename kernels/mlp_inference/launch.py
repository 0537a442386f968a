"""One entry point for a block-sparse product with its epilogue: picks the kernel by shape and launches it."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from blast_kernels.common.constants import BLOCK_SIDES
from blast_kernels.mlp_inference.heuristics import KernelConfig, heuristic_config
from blast_kernels.mlp_inference.persistent import persistent
from blast_kernels.mlp_inference.replay import Buffer, Launch, launch
from blast_kernels.mlp_inference.split_k import CLEARED_BY_ONE
from blast_kernels.mlp_inference.stream import stream
from blast_kernels.mlp_inference.tiles import tiles
from blast_kernels.mlp_inference.tuned_configs import kernel_config
from torch import Tensor
from triton.experimental.gluon.language import NVMMASharedLayout
from triton.experimental.gluon.language import bfloat16 as gluon_bfloat16
from triton.experimental.gluon.language import float16 as gluon_float16
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor as GluonDescriptor
from triton.runtime.errors import OutOfResources
from triton.tools.tensor_descriptor import TensorDescriptor

INTERPRETED = triton.knobs.runtime.interpret
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
PERSISTENT_CONSTANTS = ("B_OUT", "B_IN", "SLICE", "GATE", "ACTIVATION", "HAS_BIAS", "HAS_PLACES", "STAGES")
# Rows of a gate or up block that lie together in a tile of both: what one thread's share of a tensor-core accumulator
# steps over.
TOGETHER = 8
# `stream` asks for the first blocks of a row while it waits for the kernel before it, if rows are shorter than this on
# average. Long rows lose: other programs then wait for the memory.
PREFETCHED, SHORT_ROW = 2, 8
# The tensor memory accelerator wants addresses and distances of 16 bytes, and distances below 2⁴⁰ bytes.
TMA_ALIGNMENT, TMA_DISTANCE = 16, 1 << 40


class Chain(NamedTuple):
    """How a kernel is tied to the ones before and after it.

    Attributes:
        leads: Lets the next kernel start before this one ends (that one must be launched with `waits`).
        waits: Whether it is launched before the kernel before it has ended, and when it waits for that: `never`, it is
            not; `first`, before it reads anything; `late`, before it reads `x`: weights and row list must be older.
        counters: int32, `counters_needed(…)` zeros, if the config splits block lists. `product` makes them
            if they are left out, which costs a launch.
        clears: Counters of a kernel that comes later, zeroed by this one.
    """

    leads: bool = False
    waits: str = "never"
    counters: Tensor | None = None
    clears: Tensor | None = None


def supports(values: Tensor) -> bool:
    """Whether the kernels take this dtype and block shape; the reference takes all."""
    sides_fit = values.shape[1] in BLOCK_SIDES and values.shape[2] in BLOCK_SIDES
    return sides_fit and values.dtype in (*FLOATS, torch.float8_e4m3fn)


def choose(
    x: Tensor, values: Tensor, row_list: Tensor, gate: str, up: Tensor | None = None, blocks: int | None = None
) -> KernelConfig:
    """The config for a product of this shape on this device; `up` and `blocks` as `product` takes them."""
    _, b_out, b_in = values.shape
    if blocks is None:
        blocks = values.shape[0] + (up.shape[0] if gate == "untied" else 0)
    if blocks == 0:
        # A descriptor cannot describe nothing; what is left to do is the epilogue.
        return heuristic_config(1, row_list.shape[0], b_out, b_in, gate, x.dtype == torch.float32, row_blocks=0.0)
    config = kernel_config(x.shape[0], row_list.shape[0], blocks, b_out, b_in, gate, values.dtype, x.device)
    through_registers = config.kernel == "tiles" and config.weights_first and config.slice < 64
    if gate == "tied" and through_registers and values.dtype != torch.float8_e4m3fn:
        # Gate and up of one descriptor on the M side would pass through registers: up to twice the time.
        return config._replace(weights_first=False, tile=max(64, config.tile))
    return config


def counters_needed(config: KernelConfig, tokens: int, rows: int, b_out: int) -> int:
    """How many counters a split product wants; none without a split."""
    return 0 if config.split == 1 else rows * (b_out // config.slice) * triton.cdiv(tokens, config.tile)


def product(
    x: Tensor,
    values: Tensor,
    row_list: Tensor,
    bias: Tensor | None,
    y: Tensor,
    activation: str,
    gate: str,
    config: KernelConfig | None = None,
    scales: Tensor | None = None,
    chain: Chain = Chain(),  # noqa: B008  (never written to)
    up: Tensor | None = None,
    up_scales: Tensor | None = None,
    blocks: int | None = None,
) -> tuple[Launched, ...] | None:
    """Writes the block rows that have an entry into `y`; arguments as `reference.product`, contiguous.

    Args:
        x: `[tokens, in]`.
        values: `[nnz, b_out, b_in]`; with a gate, the blocks of the gate.
        row_list: See `row_lists`.
        bias: `[out]` or None; None with a gate.
        y: `[tokens, out]`, written at the block rows that have an entry, all else left as it is.
        activation: `none`, `silu`, `gelu` or `gelu_tanh`.
        gate: `none`, `untied` or `tied`.
        config: How to run it; chosen by shape if left out.
        scales: float32 `[nnz]`, powers of two, of blocks in float8 (x is float16 or bfloat16 then); None otherwise.
        chain: How it is tied to the kernels around it.
        up: `[nnz of up, b_out, b_in]`, the blocks of the up projection where there is a gate; None otherwise.
        up_scales: As `scales`, of `up`; None where gate and up share a mask, and with it the scales.
        blocks: How many blocks the row_list name, if they give the place of each; None if they do not.

    Returns:
        The launches, which `replay.Replay` can repeat: one, or none if there is nothing to compute. None if they cannot
        be repeated.

    Raises:
        ValueError: if the config wants more shared memory or registers than the device has.
    """
    if x.shape[0] == 0 or row_list.shape[0] == 0:
        return ()
    if INTERPRETED and x.dtype == torch.bfloat16:
        # The interpreter multiplies the raw bits of bfloat16.
        wide = None if bias is None else bias.float()
        out = y.float()
        parts = [
            None if part is None else part.float() if factors is None else part.float() * factors[:, None, None]
            for part, factors in ((values, scales), (up, scales if gate == "tied" else up_scales))
        ]
        product(
            x.float(), parts[0], row_list, wide, out, activation, gate, config, None, chain, parts[1], None, blocks
        )  # fmt: skip
        y.copy_(out)
        return None
    config = config or choose(x, values, row_list, gate, up, blocks)
    b_out = values.shape[1]
    partials = counters = row_list
    buffers: list[Buffer] = []
    if config.split > 1:
        needed = counters_needed(config, x.shape[0], row_list.shape[0], b_out)
        counters = chain.counters
        if counters is None:
            counters = torch.zeros(needed, dtype=torch.int32, device=x.device)
            buffers.append(Buffer(counters, zeroed=True))
        wide_rows = config.slice * (1 if gate == "none" else 2)
        partials = torch.empty(needed * config.split * wide_rows * config.tile, dtype=torch.float32, device=x.device)
        buffers.append(Buffer(partials))
    common = {
        "B_OUT": b_out,
        "B_IN": values.shape[2],
        "SLICE": config.slice,
        "TILE": config.tile,
        "GATE": gate,
        "ACTIVATION": activation,
        "HAS_BIAS": bias is not None,
        "HAS_SCALES": scales is not None,
        "HAS_PLACES": blocks is not None,
        "SPLIT": config.split,
        "STAGES": config.stages,
        # The interpreter knows no assembly.
        "OPAQUE": not INTERPRETED,
        "LEADS": chain.leads,
        "WAITS": chain.waits,
        "num_warps": config.warps,
    }
    if config.kernel == "persistent" and (scales is not None or x.dtype == torch.float32 or INTERPRETED):
        raise ValueError(
            "the persistent kernel takes float16 and bfloat16 weights on a GPU; pass another config or none"
        )
    if chain.waits != "never":
        common["launch_pdl"] = True
    if config.registers is not None:
        common["maxnreg"] = config.registers
    if config.kernel == "stream":
        named = values.shape[0] if blocks is None else blocks
        short = gate == "none" and config.k <= values.shape[2] and named < SHORT_ROW * row_list.shape[0]
        common["PREFETCH"] = PREFETCHED if short else 0
    bias = x if bias is None else bias
    weights = Weights(values, up, x if scales is None else scales, x if up_scales is None else up_scales)
    start = {"stream": _launch_stream, "tiles": _launch_tiles, "persistent": _launch_persistent}[config.kernel]
    # The launch goes to the current device, which need not be that of the tensors.
    with torch.cuda.device_of(x):
        try:
            made = start(x, weights, row_list, bias, y, partials, counters, chain.clears, gate, config, common)
        except OutOfResources as error:
            raise ValueError(f"{config} does not fit this device: {error}; pass another config or none") from None
    if made is None or not _clears_all(chain.clears, made):
        return None
    return (Launched(made, buffers),)


class Launched(NamedTuple):
    """A launch that was made, and the memory that was made for it."""

    launch: Launch
    buffers: list[Buffer]


def _clears_all(clears: Tensor | None, launch: Launch) -> bool:
    """Whether the kernel itself clears the counters that are to be cleared."""
    return clears is None or clears.numel() == 0 or any(argument is clears for argument in launch.arguments)


def _launch_stream(x, weights, row_list, bias, y, partials, counters, clears, gate, config, common) -> Launch | None:
    b_out, b_in = common["B_OUT"], common["B_IN"]
    grid = (row_list.shape[0] * (b_out // config.slice), triton.cdiv(x.shape[0], config.tile), config.split)
    to_clear, clear_count, cleared = _clearing(clears, grid[0] * grid[1] * grid[2], row_list)
    up = weights.values if weights.up is None else weights.up
    arguments = (
        x, weights.values, up, weights.scales, weights.up_scales, row_list, bias, y, partials, counters, to_clear,
        x.shape[0], x.shape[1], y.shape[1], row_list.shape[1], clear_count,
    )  # fmt: skip
    # tf32 would lose the three digits that float32 is asked for.
    precision = "ieee" if x.dtype == torch.float32 else "tf32"
    more = {"CLEARS": cleared, "BLOCKS": max(1, config.k // b_in), "PRECISION": precision}
    return launch(stream, grid, arguments, common | more)


def _launch_tiles(x, weights, row_list, bias, y, partials, counters, clears, gate, config, common) -> Launch | None:
    b_out = common["B_OUT"]
    x = _aligned(x)
    token_tiles = triton.cdiv(x.shape[0], config.tile)
    paired = gate == "tied" and pairs(config, common["HAS_SCALES"])
    w_layout, up_layout, up_first = _weight_layouts(weights, gate, paired, config)
    programs = row_list.shape[0] * token_tiles * (b_out // config.slice) * config.split
    to_clear, clear_count, cleared = _clearing(clears, programs, row_list)
    arguments = (
        TensorDescriptor.from_tensor(x, [config.tile, config.k]),
        TensorDescriptor(*w_layout),
        TensorDescriptor(*up_layout),
        TensorDescriptor.from_tensor(y, [config.tile, config.slice]),
        weights.scales, weights.up_scales, row_list, bias, partials, counters, to_clear,
        row_list.shape[0], token_tiles, min(config.group, token_tiles), row_list.shape[1], clear_count,
    )  # fmt: skip
    # Converted weights are in registers, where the product takes its first operand alone.
    weights_first = config.weights_first or common["HAS_SCALES"]
    more = {
        "CLEARS": cleared, "K": config.k, "PAIRED": paired, "UP_FIRST": up_first, "WEIGHTS_FIRST": weights_first
    }  # fmt: skip
    return launch(tiles, (programs,), arguments, common | more)


def _launch_persistent(
    x, weights, row_list, bias, y, partials, counters, clears, gate, config, common
) -> Launch | None:
    b_out = common["B_OUT"]
    x = _aligned(x)
    _clearing(clears, 0, row_list)
    w_layout, up_layout, up_first = _weight_layouts(weights, gate, gate == "tied", config)
    token_tiles = triton.cdiv(x.shape[0], config.tile)
    programs = torch.cuda.get_device_properties(x.device).multi_processor_count
    tiles_in_all = row_list.shape[0] * token_tiles * (b_out // config.slice)
    # A gate-up product with two masks holds its gate in the buffer of the result.
    columns = config.slice if gate == "untied" else min(64, config.slice)
    arguments = (
        _gluon_descriptor(*_plain_layout(x, [config.tile // 2, config.k])),
        _gluon_descriptor(*w_layout),
        _gluon_descriptor(*up_layout),
        _gluon_descriptor(*_plain_layout(y, [config.tile // 2, columns])),
        row_list, bias, row_list.shape[0], token_tiles, min(config.group, token_tiles), row_list.shape[1],
    )  # fmt: skip
    constants = {name: common[name] for name in PERSISTENT_CONSTANTS} | {"K": config.k, "UP_FIRST": up_first}
    # Twelve warps share the registers of a multiprocessor.
    options = {"maxnreg": 168, "num_warps": 4}
    return launch(persistent, (min(programs, tiles_in_all),), arguments, constants | options)


class Weights(NamedTuple):
    """Blocks and scales of a product: those of the gate or of its one matrix, and those of the up projection."""

    values: Tensor
    up: Tensor | None
    scales: Tensor
    up_scales: Tensor


class Layout(NamedTuple):
    """What a descriptor describes: address and dtype of `base`, sides and distances in elements, and the box."""

    base: Tensor
    shape: list[int]
    strides: list[int]
    box: list[int]


def _plain_layout(matrix: Tensor, box: list[int]) -> Layout:
    return Layout(matrix, list(matrix.shape), list(matrix.stride()), box)


def pairs(config: KernelConfig, has_scales: bool) -> bool:
    """Whether `tiles` fetches gate and up of one mask as one matrix."""
    return not config.weights_first or config.slice < 64 or has_scales


def _weight_layouts(weights: Weights, gate: str, paired: bool, config: KernelConfig) -> tuple[Layout, Layout, bool]:
    """How the weights of a product are fetched, those of the gate and of up, and whether up lies before the gate.

    Gate and up are two tensors somewhere in memory. Where they share a mask, one descriptor can hold both: `[rows / 8,
    2, 8, b_in]`, with their distance as the stride of the second dimension. A box then brings eight rows of each in
    turn, and one product serves both.
    """
    values, up = _aligned(weights.values), weights.up
    b_in, box = values.shape[2], [config.slice, config.k]
    if gate == "none":
        plain = _plain_layout(values.view(-1, b_in), box)
        return plain, plain, False
    up = _aligned(up)
    if not paired:
        # A descriptor cannot describe nothing: a matrix without blocks is never read.
        first, second = (part if part.numel() else other for part, other in ((values, up), (up, values)))
        return _plain_layout(first.view(-1, b_in), box), _plain_layout(second.view(-1, b_in), box), False
    distance = up.data_ptr() - values.data_ptr()
    first = up if distance < 0 else values
    if distance == 0 or abs(distance) >= TMA_DISTANCE:
        # Rare: one tensor in both roles, or too far apart. A copy for this call alone.
        first, distance = torch.cat([values.view(-1), up.view(-1)]), values.nbytes
    shape = [values.numel() // (TOGETHER * b_in), 2, TOGETHER, b_in]
    strides = [TOGETHER * b_in, abs(distance) // values.element_size(), b_in, 1]
    both = Layout(first, shape, strides, [config.slice // TOGETHER, 2, TOGETHER, config.k])
    return both, both, distance < 0


def _aligned(tensor: Tensor) -> Tensor:
    # A view into another tensor may start anywhere; the tensor memory accelerator wants 16 bytes.
    return tensor.clone() if tensor.data_ptr() % TMA_ALIGNMENT else tensor


def _gluon_descriptor(base: Tensor, shape: list[int], strides: list[int], box: list[int]) -> GluonDescriptor:
    element = gluon_bfloat16 if base.dtype == torch.bfloat16 else gluon_float16
    return GluonDescriptor(base, shape, strides, box, NVMMASharedLayout.get_default_for(box, element))


def _clearing(clears: Tensor | None, programs: int, otherwise: Tensor) -> tuple[Tensor, int, int]:
    """The counters to clear, how many, and how many a program (0: none)."""
    if clears is None or clears.numel() == 0:
        return otherwise, 0, 0
    if programs * CLEARED_BY_ONE < clears.numel():
        # Too few programs (or a kernel that does not do it).
        clears.zero_()
        return otherwise, 0, 0
    return clears, clears.numel(), CLEARED_BY_ONE
