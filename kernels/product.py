"""One entry point for a block-sparse product with its epilogue: picks the kernel by shape and launches it."""

from __future__ import annotations

import torch
import triton
from blast_kernels.plan import BLOCK_SIDES, Plan, plan_for
from blast_kernels.stream import stream
from blast_kernels.tiles import tiles
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

INTERPRETED = triton.knobs.runtime.interpret


def supports(values: Tensor, gate: str) -> bool:
    """Whether the kernels take this dtype and block shape; the twin takes all."""
    b_out = values.shape[1] // 2 if gate == "tied" else values.shape[1]
    sides_fit = b_out in BLOCK_SIDES and values.shape[2] in BLOCK_SIDES
    return sides_fit and values.dtype in (torch.float32, torch.float16, torch.bfloat16)


def product(
    x: Tensor,
    values: Tensor,
    records: Tensor,
    bias: Tensor | None,
    y: Tensor,
    activation: str,
    gate: str,
    plan: Plan | None = None,
    leads: bool = False,
    follows: bool = False,
) -> None:
    """Writes the block rows that have a record into `y`; arguments as `reference.product`, contiguous.

    Args:
        x: `[tokens, in]`.
        values: `[nnz, b_out, b_in]`, or `[nnz, 2 · b_out, b_in]` if `gate` is `tied`.
        records: See `records`.
        bias: `[out]` or None; None with a gate.
        y: `[tokens, out]`, written at the block rows that have a record, all else left as it is.
        activation: `none`, `silu`, `gelu` or `gelu_tanh`.
        gate: `none`, `untied` or `tied`.
        plan: How to run it; chosen by shape if left out.
        leads: Lets the next kernel start before this one ends (that one must be launched with `follows`).
        follows: Waits, before the first read of `x`, for the kernel that writes it.
    """
    if x.shape[0] == 0 or records.shape[0] == 0:
        return
    if INTERPRETED and x.dtype == torch.bfloat16:
        # The interpreter multiplies the raw bits of bfloat16.
        wide = None if bias is None else bias.float()
        out = y.float()
        product(x.float(), values.float(), records, wide, out, activation, gate, plan)
        y.copy_(out)
        return
    b_out = values.shape[1] // 2 if gate == "tied" else values.shape[1]
    if plan is None:
        has_tma = not x.is_cuda or torch.cuda.get_device_capability(x.device)[0] >= 9
        plan = plan_for(x.shape[0], records.shape[0], b_out, values.shape[2], gate, x.dtype == torch.float32, has_tma)
    if values.shape[0] == 0:
        # A descriptor cannot describe nothing; what is left to do is the epilogue.
        plan = plan_for(1, records.shape[0], b_out, values.shape[2], gate, x.dtype == torch.float32)
    launch = _launch_stream if plan.kernel == "stream" else _launch_tiles
    options = {"launch_pdl": True} if follows else {}
    if plan.registers is not None:
        options["maxnreg"] = plan.registers
    # The launch goes to the current device, which need not be that of the tensors.
    with torch.cuda.device_of(x):
        launch(x, values, records, bias, y, activation, gate, plan, b_out, leads, follows, options)


def _launch_stream(x, values, records, bias, y, activation, gate, plan, b_out, leads, follows, options) -> None:
    b_in = values.shape[2]
    grid = (records.shape[0] * (b_out // plan.slice), triton.cdiv(x.shape[0], plan.tile))
    stream[grid](
        x,
        values,
        records,
        x if bias is None else bias,
        y,
        x.shape[0],
        x.shape[1],
        y.shape[1],
        records.shape[1],
        B_OUT=b_out,
        B_IN=b_in,
        SLICE=plan.slice,
        TILE=plan.tile,
        BLOCKS=max(1, plan.k // b_in),
        GATE=gate,
        ACTIVATION=activation,
        HAS_BIAS=bias is not None,
        STAGES=plan.stages,
        # tf32 would lose the three digits that float32 is asked for.
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        LEADS=leads,
        FOLLOWS=follows,
        num_warps=plan.warps,
        **options,
    )


def _launch_tiles(x, values, records, bias, y, activation, gate, plan, b_out, leads, follows, options) -> None:
    b_in = values.shape[2]
    if x.data_ptr() % 16:
        # A view into another tensor may start anywhere; the tensor memory accelerator wants 16 bytes.
        x = x.clone()
    token_tiles = triton.cdiv(x.shape[0], plan.tile)
    w_rows = plan.slice * (2 if gate == "tied" else 1)
    tiles[(records.shape[0] * token_tiles * (b_out // plan.slice),)](
        TensorDescriptor.from_tensor(x, [plan.tile, plan.k]),
        TensorDescriptor.from_tensor(values.view(-1, b_in), [w_rows, plan.k]),
        TensorDescriptor.from_tensor(y, [plan.tile, plan.slice]),
        records,
        x if bias is None else bias,
        records.shape[0],
        token_tiles,
        min(plan.group, token_tiles),
        records.shape[1],
        B_OUT=b_out,
        B_IN=b_in,
        SLICE=plan.slice,
        K=plan.k,
        TILE=plan.tile,
        GATE=gate,
        ACTIVATION=activation,
        HAS_BIAS=bias is not None,
        WEIGHTS_FIRST=plan.weights_first,
        STAGES=plan.stages,
        OPAQUE=not INTERPRETED,
        LEADS=leads,
        FOLLOWS=follows,
        num_warps=plan.warps,
        **options,
    )
