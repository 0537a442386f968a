"""One entry point for a block-sparse product with its epilogue: picks the kernel by shape and launches it."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from blast_kernels.common.constants import BLOCK_SIDES
from blast_kernels.mlp_inference.heuristics import KernelConfig, heuristic_config
from blast_kernels.mlp_inference.persistent import persistent
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


def supports(values: Tensor, gate: str) -> bool:
    """Whether the kernels take this dtype and block shape; the reference takes all."""
    b_out = _rows_of_a_block(values, gate)
    sides_fit = b_out in BLOCK_SIDES and values.shape[2] in BLOCK_SIDES
    return sides_fit and values.dtype in (*FLOATS, torch.float8_e4m3fn)


def choose(x: Tensor, values: Tensor, row_list: Tensor, gate: str) -> KernelConfig:
    """The config for a product of this shape on this device."""
    b_out, b_in = _rows_of_a_block(values, gate), values.shape[2]
    if values.shape[0] == 0:
        # A descriptor cannot describe nothing; what is left to do is the epilogue.
        return heuristic_config(1, row_list.shape[0], b_out, b_in, gate, x.dtype == torch.float32)
    blocks = values.shape[0]
    return kernel_config(x.shape[0], row_list.shape[0], blocks, b_out, b_in, gate, values.dtype, x.device)


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
) -> None:
    """Writes the block rows that have an entry into `y`; arguments as `reference.product`, contiguous.

    Args:
        x: `[tokens, in]`.
        values: `[nnz, b_out, b_in]`, or `[nnz, 2 · b_out, b_in]` if `gate` is `tied`.
        row_list: See `row_lists`.
        bias: `[out]` or None; None with a gate.
        y: `[tokens, out]`, written at the block rows that have an entry, all else left as it is.
        activation: `none`, `silu`, `gelu` or `gelu_tanh`.
        gate: `none`, `untied` or `tied`.
        config: How to run it; chosen by shape if left out.
        scales: float32 `[nnz]`, powers of two, of blocks in float8 (x is float16 or bfloat16 then); None otherwise.
        chain: How it is tied to the kernels around it.

    Raises:
        ValueError: if the config wants more shared memory or registers than the device has.
    """
    if x.shape[0] == 0 or row_list.shape[0] == 0:
        return
    if INTERPRETED and x.dtype == torch.bfloat16:
        # The interpreter multiplies the raw bits of bfloat16.
        wide = None if bias is None else bias.float()
        out = y.float()
        blocks = values.float() if scales is None else values.float() * scales[:, None, None]
        product(x.float(), blocks, row_list, wide, out, activation, gate, config, None, chain)
        y.copy_(out)
        return
    config = config or choose(x, values, row_list, gate)
    b_out = _rows_of_a_block(values, gate)
    partials = counters = row_list
    if config.split > 1:
        needed = counters_needed(config, x.shape[0], row_list.shape[0], b_out)
        counters = chain.counters
        if counters is None:
            counters = torch.zeros(needed, dtype=torch.int32, device=x.device)
        wide_rows = config.slice * (1 if gate == "none" else 2)
        partials = torch.empty(needed * config.split * wide_rows * config.tile, dtype=torch.float32, device=x.device)
    common = {
        "B_OUT": b_out,
        "B_IN": values.shape[2],
        "SLICE": config.slice,
        "TILE": config.tile,
        "GATE": gate,
        "ACTIVATION": activation,
        "HAS_BIAS": bias is not None,
        "HAS_SCALES": scales is not None,
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
    bias = x if bias is None else bias
    scales = x if scales is None else scales
    launch = {"stream": _launch_stream, "tiles": _launch_tiles, "persistent": _launch_persistent}[config.kernel]
    # The launch goes to the current device, which need not be that of the tensors.
    with torch.cuda.device_of(x):
        try:
            launch(x, values, scales, row_list, bias, y, partials, counters, chain.clears, gate, config, common)
        except OutOfResources as error:
            raise ValueError(f"{config} does not fit this device: {error}; pass another config or none") from None


def _launch_stream(x, values, scales, row_list, bias, y, partials, counters, clears, gate, config, common) -> None:
    b_out, b_in = common["B_OUT"], common["B_IN"]
    grid = (row_list.shape[0] * (b_out // config.slice), triton.cdiv(x.shape[0], config.tile), config.split)
    to_clear, clear_count, cleared = _clearing(clears, grid[0] * grid[1] * grid[2], row_list)
    stream[grid](
        x,
        values,
        scales,
        row_list,
        bias,
        y,
        partials,
        counters,
        to_clear,
        x.shape[0],
        x.shape[1],
        y.shape[1],
        row_list.shape[1],
        clear_count,
        CLEARS=cleared,
        BLOCKS=max(1, config.k // b_in),
        # tf32 would lose the three digits that float32 is asked for.
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        **common,
    )


def _launch_tiles(x, values, scales, row_list, bias, y, partials, counters, clears, gate, config, common) -> None:
    b_out, b_in = common["B_OUT"], common["B_IN"]
    if x.data_ptr() % 16:
        # A view into another tensor may start anywhere; the tensor memory accelerator wants 16 bytes.
        x = x.clone()
    token_tiles = triton.cdiv(x.shape[0], config.tile)
    w_rows = config.slice * (2 if gate == "tied" else 1)
    programs = row_list.shape[0] * token_tiles * (b_out // config.slice) * config.split
    to_clear, clear_count, cleared = _clearing(clears, programs, row_list)
    tiles[(programs,)](
        TensorDescriptor.from_tensor(x, [config.tile, config.k]),
        TensorDescriptor.from_tensor(values.view(-1, b_in), [w_rows, config.k]),
        TensorDescriptor.from_tensor(y, [config.tile, config.slice]),
        scales,
        row_list,
        bias,
        partials,
        counters,
        to_clear,
        row_list.shape[0],
        token_tiles,
        min(config.group, token_tiles),
        row_list.shape[1],
        clear_count,
        CLEARS=cleared,
        K=config.k,
        # Converted weights are in registers, where the product takes its first operand alone.
        WEIGHTS_FIRST=config.weights_first or common["HAS_SCALES"],
        **common,
    )


def _launch_persistent(x, values, scales, row_list, bias, y, partials, counters, clears, gate, config, common) -> None:
    b_out, b_in = common["B_OUT"], common["B_IN"]
    if x.data_ptr() % 16:
        x = x.clone()
    _clearing(clears, 0, row_list)
    rows = config.slice * (2 if gate == "tied" else 1)
    token_tiles = triton.cdiv(x.shape[0], config.tile)
    programs = torch.cuda.get_device_properties(x.device).multi_processor_count
    tiles_in_all = row_list.shape[0] * token_tiles * (b_out // config.slice)
    persistent[(min(programs, tiles_in_all),)](
        _gluon_descriptor(x, [config.tile // 2, config.k]),
        _gluon_descriptor(values.view(-1, b_in), [rows, config.k]),
        # A gate-up product with two masks holds its gate in the buffer of the result.
        _gluon_descriptor(y, [config.tile // 2, config.slice if gate == "untied" else min(64, config.slice)]),
        row_list,
        bias,
        row_list.shape[0],
        token_tiles,
        min(config.group, token_tiles),
        row_list.shape[1],
        K=config.k,
        # Twelve warps share the registers of a multiprocessor.
        maxnreg=168,
        **{name: common[name] for name in ("B_OUT", "B_IN", "SLICE", "GATE", "ACTIVATION", "HAS_BIAS", "STAGES")},
        num_warps=4,
    )


def _gluon_descriptor(matrix: Tensor, box: list[int]) -> GluonDescriptor:
    element = gluon_bfloat16 if matrix.dtype == torch.bfloat16 else gluon_float16
    return GluonDescriptor.from_tensor(matrix, box, NVMMASharedLayout.get_default_for(box, element))


def _clearing(clears: Tensor | None, programs: int, otherwise: Tensor) -> tuple[Tensor, int, int]:
    """The counters to clear, how many, and how many a program (0: none)."""
    if clears is None or clears.numel() == 0:
        return otherwise, 0, 0
    if programs * CLEARED_BY_ONE < clears.numel():
        # Too few programs (or a kernel that does not do it).
        clears.zero_()
        return otherwise, 0, 0
    return clears, clears.numel(), CLEARED_BY_ONE


def _rows_of_a_block(values: Tensor, gate: str) -> int:
    return values.shape[1] // 2 if gate == "tied" else values.shape[1]
