"""Triton kernels of a linear layer with a block-CSR index: forward, gradient of the activations and of the blocks.

One program computes a block row (or block column, or block) for one token tile. References: `reference.block_matmul`,
`reference.input_grad`, `reference.value_grad`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from blast_kernels.common.constants import BLOCK_SIDES
from blast_kernels.common.gpu_limits import GpuLimits, gpu_limits
from torch import Tensor

INTERPRETED = triton.knobs.runtime.interpret


@triton.jit
def _block_matmul(
    x,
    values,
    offsets,
    indices,
    order,
    bias,
    y,
    tokens,
    in_features,
    out_features,
    HAS_BIAS: tl.constexpr,
    HAS_ORDER: tl.constexpr,
    OUT_SIDE: tl.constexpr,
    IN_SIDE: tl.constexpr,
    OUT_STRIDE: tl.constexpr,
    IN_STRIDE: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row = tl.program_id(0)
    token = tl.program_id(1) * TILE + tl.arange(0, TILE)
    present = token < tokens
    out_column = row * OUT_SIDE + tl.arange(0, OUT_SIDE)
    k = tl.arange(0, IN_SIDE)
    x_pointers = x + token[:, None].to(tl.int64) * in_features + k[None, :]
    block_pointers = values + k[:, None] * IN_STRIDE + tl.arange(0, OUT_SIDE)[None, :] * OUT_STRIDE

    first = tl.load(offsets + row)
    last = tl.load(offsets + row + 1)
    total = tl.zeros((TILE, OUT_SIDE), dtype=tl.float32)
    # Triton does not pipeline a scalar load inside the loop, so the next index is loaded one step ahead.
    some = first < last
    column = tl.load(indices + first, mask=some, other=0)
    position = tl.load(order + first, mask=some, other=0) if HAS_ORDER else first
    for n in range(first, last):
        more = n + 1 < last
        next_column = tl.load(indices + n + 1, mask=more, other=0)
        next_position = tl.load(order + n + 1, mask=more, other=0) if HAS_ORDER else position + 1
        tile = tl.load(x_pointers + column * IN_SIDE, mask=present[:, None], other=0.0)  # [TILE, IN_SIDE]
        block = tl.load(block_pointers + position.to(tl.int64) * (OUT_SIDE * IN_SIDE))  # [IN_SIDE, OUT_SIDE]
        total = tl.dot(tile, block, total, input_precision=PRECISION)
        column = next_column
        position = next_position
    if HAS_BIAS:
        total += tl.load(bias + out_column).to(tl.float32)[None, :]
    target = y + token[:, None].to(tl.int64) * out_features + out_column[None, :]
    tl.store(target, total.to(y.dtype.element_ty), mask=present[:, None])


@triton.jit
def _value_grad(
    grad,
    x,
    rows,
    columns,
    out,
    tokens,
    out_features,
    in_features,
    B_OUT: tl.constexpr,
    B_IN: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    n = tl.program_id(0)
    row = tl.load(rows + n)
    column = tl.load(columns + n)
    o = tl.arange(0, B_OUT)
    i = tl.arange(0, B_IN)
    t = tl.arange(0, TILE)
    # Tokens are the inner dimension of the product: one token tile a step.
    grad_pointers = grad + t[None, :].to(tl.int64) * out_features + (row * B_OUT + o)[:, None]
    x_pointers = x + t[:, None].to(tl.int64) * in_features + (column * B_IN + i)[None, :]
    total = tl.zeros((B_OUT, B_IN), dtype=tl.float32)
    for start in range(0, tokens, TILE):
        present = t < tokens - start
        left = tl.load(grad_pointers, mask=present[None, :], other=0.0)  # [B_OUT, TILE]
        right = tl.load(x_pointers, mask=present[:, None], other=0.0)  # [TILE, B_IN]
        total = tl.dot(left, right, total, input_precision=PRECISION)
        grad_pointers += TILE * out_features.to(tl.int64)
        x_pointers += TILE * in_features.to(tl.int64)
    target = out + n.to(tl.int64) * (B_OUT * B_IN) + o[:, None] * B_IN + i[None, :]
    tl.store(target, total.to(out.dtype.element_ty))


def supports(dtype: torch.dtype, b_out: int, b_in: int) -> bool:
    """Whether the kernels take this dtype and block shape; the reference takes all."""
    return b_out in BLOCK_SIDES and b_in in BLOCK_SIDES and dtype in (torch.float32, torch.float16, torch.bfloat16)


def block_matmul(x: Tensor, values: Tensor, row_offsets: Tensor, col_indices: Tensor, bias: Tensor | None) -> Tensor:
    """`x · Wᵀ + bias`; arguments as `reference.block_matmul`, contiguous.

    Returns:
        `[tokens, rows · b_out]` in the dtype of `x`; summed in float32.
    """
    b_out, b_in = values.shape[1:]
    return _product(x, values, row_offsets, col_indices, None, bias, (b_out, b_in), (b_in, 1))


def input_grad(grad: Tensor, values: Tensor, t_offsets: Tensor, t_indices: Tensor, t_order: Tensor) -> Tensor:
    """`grad · W` through the index of `Wᵀ`. The blocks are read in place and transposed in registers.

    Args:
        grad: `[tokens, rows · b_out]`, contiguous.
        values: `[nnz, b_out, b_in]`.
        t_offsets: `[cols + 1]`.
        t_indices: `[nnz]`, block rows of `W`.
        t_order: `[nnz]`, position in `values` of each block of `Wᵀ`.

    Returns:
        `[tokens, cols · b_in]` in the dtype of `grad`.
    """
    b_out, b_in = values.shape[1:]
    return _product(grad, values, t_offsets, t_indices, t_order, None, (b_in, b_out), (1, b_in))


def value_grad(grad: Tensor, x: Tensor, row_offsets: Tensor, col_indices: Tensor, b_out: int, b_in: int) -> Tensor:
    """`gradᵀ · x` for the live blocks; arguments as `reference.value_grad`, contiguous.

    Returns:
        `[nnz, b_out, b_in]` in the dtype of `x`; summed in float32.
    """
    if INTERPRETED and x.dtype == torch.bfloat16:
        return value_grad(grad.float(), x.float(), row_offsets, col_indices, b_out, b_in).to(x.dtype)
    nnz = col_indices.numel()
    lengths = row_offsets.diff()
    # With the output size given, this does not wait for the device.
    rows = torch.repeat_interleave(
        torch.arange(lengths.numel(), dtype=torch.int32, device=x.device), lengths, output_size=nnz
    )
    out = torch.empty(nnz, b_out, b_in, dtype=x.dtype, device=x.device)
    if nnz == 0:
        return out
    wide_float = x.dtype == torch.float32
    _value_grad[(nnz,)](
        grad,
        x,
        rows,
        col_indices,
        out,
        x.shape[0],
        grad.shape[1],
        x.shape[1],
        B_OUT=b_out,
        B_IN=b_in,
        TILE=16 if wide_float else 64,
        PRECISION="ieee" if wide_float else "tf32",
        num_warps=8 if b_out * b_in >= 128 * 128 else 4,
        num_stages=2 if wide_float else 3,
    )
    return out


def _product(x, values, offsets, indices, order, bias, sides, strides) -> Tensor:
    if INTERPRETED and x.dtype == torch.bfloat16:
        # Triton's interpreter multiplies the raw bits of bfloat16.
        wide = None if bias is None else bias.float()
        return _product(x.float(), values.float(), offsets, indices, order, wide, sides, strides).to(x.dtype)
    tokens, in_features = x.shape
    out_features = (offsets.numel() - 1) * sides[0]
    y = torch.empty(tokens, out_features, dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    wide_float = x.dtype == torch.float32
    tile = min(32 if wide_float else 128, max(16, triton.next_power_of_2(tokens)))
    _block_matmul[(offsets.numel() - 1, triton.cdiv(tokens, tile))](
        x,
        values,
        offsets,
        indices,
        indices if order is None else order,
        x if bias is None else bias,
        y,
        tokens,
        in_features,
        out_features,
        HAS_BIAS=bias is not None,
        HAS_ORDER=order is not None,
        OUT_SIDE=sides[0],
        IN_SIDE=sides[1],
        OUT_STRIDE=strides[0],
        IN_STRIDE=strides[1],
        TILE=tile,
        # tf32 would lose three of the digits that a user of float32 expects.
        PRECISION="ieee" if wide_float else "tf32",
        num_warps=8 if sides[0] * tile >= 128 * 128 else 4,
        num_stages=pipeline_depth(sides, tile, x.element_size(), gpu_limits(x.device)),
    )
    return y


def pipeline_depth(sides: tuple[int, int], tile: int, item: int, limits: GpuLimits) -> int:
    """Stages of `_block_matmul`: three, or two for float32, or as many as fit the shared memory of the GPU.

    Args:
        sides: Output and input side of a block.
        tile: Tokens a program.
        item: Bytes of an element.
        limits: The GPU.
    """
    buffers = limits.shared_memory // (sides[1] * (sides[0] + tile) * item)
    return max(1, min(2 if item == 4 else 3, buffers + (0 if limits.multiplies_from_shared_memory else 1)))
