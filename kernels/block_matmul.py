"""`Y = X · Wᵀ + bias` with block-CSR `W`: one program a block row and token tile. Twin: `reference.block_matmul`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = triton.knobs.runtime.interpret
BLOCK_SIDES = (16, 32, 64, 128)


@triton.jit
def _block_matmul(
    x,
    values,
    row_offsets,
    col_indices,
    bias,
    y,
    tokens,
    in_features,
    out_features,
    HAS_BIAS: tl.constexpr,
    B_OUT: tl.constexpr,
    B_IN: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row = tl.program_id(0)
    token = tl.program_id(1) * TILE + tl.arange(0, TILE)
    present = token < tokens
    out_column = row * B_OUT + tl.arange(0, B_OUT)
    k = tl.arange(0, B_IN)
    x_rows = x + token[:, None].to(tl.int64) * in_features + k[None, :]
    block_pointers = values + tl.arange(0, B_OUT)[None, :] * B_IN + k[:, None]

    first = tl.load(row_offsets + row)
    last = tl.load(row_offsets + row + 1)
    block_pointers += first.to(tl.int64) * (B_OUT * B_IN)
    total = tl.zeros((TILE, B_OUT), dtype=tl.float32)
    # A scalar load inside the loop is not pipelined: the next block column is fetched one step ahead.
    column = tl.load(col_indices + first, mask=first < last, other=0)
    for n in range(first, last):
        following = tl.load(col_indices + n + 1, mask=n + 1 < last, other=0)
        tile = tl.load(x_rows + column * B_IN, mask=present[:, None], other=0.0)  # [TILE, B_IN]
        block = tl.load(block_pointers)  # [B_IN, B_OUT]
        total = tl.dot(tile, block, total, input_precision=PRECISION)
        block_pointers += B_OUT * B_IN
        column = following
    if HAS_BIAS:
        total += tl.load(bias + out_column).to(tl.float32)[None, :]
    target = y + token[:, None].to(tl.int64) * out_features + out_column[None, :]
    tl.store(target, total.to(y.dtype.element_ty), mask=present[:, None])


def supports(values: Tensor) -> bool:
    """Whether the kernel takes this dtype and block shape; the twin takes all."""
    sides_fit = values.shape[1] in BLOCK_SIDES and values.shape[2] in BLOCK_SIDES
    return sides_fit and values.dtype in (torch.float32, torch.float16, torch.bfloat16)


def block_matmul(x: Tensor, values: Tensor, row_offsets: Tensor, col_indices: Tensor, bias: Tensor | None) -> Tensor:
    """`x · Wᵀ + bias`; arguments as `reference.block_matmul`, contiguous, `supports(values)` true.

    Returns:
        `[tokens, rows · b_out]` in the dtype of `x`; sums are float32.
    """
    if INTERPRETED and x.dtype == torch.bfloat16:
        # The interpreter multiplies the raw bits of bfloat16.
        wide = None if bias is None else bias.float()
        return block_matmul(x.float(), values.float(), row_offsets, col_indices, wide).to(x.dtype)
    tokens, in_features = x.shape
    _, b_out, b_in = values.shape
    rows = row_offsets.numel() - 1
    y = torch.empty(tokens, rows * b_out, dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    wide_float = x.dtype == torch.float32
    tile = min(32 if wide_float else 128, max(16, triton.next_power_of_2(tokens)))
    _block_matmul[(rows, triton.cdiv(tokens, tile))](
        x,
        values,
        row_offsets,
        col_indices,
        x if bias is None else bias,
        y,
        tokens,
        in_features,
        rows * b_out,
        HAS_BIAS=bias is not None,
        B_OUT=b_out,
        B_IN=b_in,
        TILE=tile,
        # tf32 would lose the three digits that float32 is asked for.
        PRECISION="ieee" if wide_float else "tf32",
        num_warps=8 if b_out * tile >= 128 * 128 else 4,
        num_stages=2 if wide_float else 3,
    )
    return y
