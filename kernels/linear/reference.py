"""Reference of the linear kernels in plain PyTorch. Tests compare the kernels with it, and the CPU runs it.

`W` is block-CSR: `values [nnz, b_out, b_in]`, `row_offsets [rows + 1]` and `col_indices [nnz]`, where block `n` of
block row `r` (`row_offsets[r] <= n < row_offsets[r + 1]`) is at block column `col_indices[n]` of `W [out, in]`.
Half-precision operands are multiplied and summed in float32, and the result is rounded once.
"""

from __future__ import annotations

import torch
from blast_kernels.common.dense import block_rows, compute_dtype
from torch import Tensor


def block_matmul(x: Tensor, values: Tensor, row_offsets: Tensor, col_indices: Tensor, bias: Tensor | None) -> Tensor:
    """`x · Wᵀ + bias`: one small product for each live block, added in place in the order of `values`.

    On a CPU this is the fastest form that was tried, because it gathers and pads nothing. 2048×8192, blocks of 64, 95 %
    empty, 512 tokens, one core: 17 ms; gathered batched products 35-58 ms; dense 212 ms.

    Args:
        x: Activations `[tokens, in]`.
        values: Live blocks `[nnz, b_out, b_in]`.
        row_offsets: `[rows + 1]`.
        col_indices: `[nnz]`.
        bias: `[rows · b_out]` or None.

    Returns:
        `[tokens, rows · b_out]` in the dtype of `x`.
    """
    b_out, b_in = values.shape[1:]
    compute = compute_dtype(x.dtype)
    out = torch.zeros(x.shape[0], (row_offsets.numel() - 1) * b_out, dtype=compute, device=x.device)
    if bias is not None:
        out += bias
    inputs, outputs = x.to(compute).split(b_in, dim=1), out.split(b_out, dim=1)
    blocks = values.to(compute).transpose(1, 2).unbind(0)
    for block, row, column in zip(blocks, block_rows(row_offsets), col_indices.tolist(), strict=True):
        outputs[row].addmm_(inputs[column], block)
    return out.to(x.dtype)


def input_grad(grad: Tensor, values: Tensor, row_offsets: Tensor, col_indices: Tensor, cols: int) -> Tensor:
    """`grad · W`: the gradient with respect to the activations.

    Args:
        grad: Gradient of the output `[tokens, rows · b_out]`.
        values: Live blocks `[nnz, b_out, b_in]`.
        row_offsets: `[rows + 1]`.
        col_indices: `[nnz]`.
        cols: Block columns of `W`.

    Returns:
        `[tokens, cols · b_in]` in the dtype of `grad`.
    """
    b_out, b_in = values.shape[1:]
    compute = compute_dtype(grad.dtype)
    out = torch.zeros(grad.shape[0], cols * b_in, dtype=compute, device=grad.device)
    inputs, outputs = grad.to(compute).split(b_out, dim=1), out.split(b_in, dim=1)
    blocks = values.to(compute).unbind(0)
    for block, row, column in zip(blocks, block_rows(row_offsets), col_indices.tolist(), strict=True):
        outputs[column].addmm_(inputs[row], block)
    return out.to(grad.dtype)


def value_grad(grad: Tensor, x: Tensor, row_offsets: Tensor, col_indices: Tensor, b_out: int, b_in: int) -> Tensor:
    """`gradᵀ · x` for the live blocks only: the gradient with respect to `values`.

    Args:
        grad: Gradient of the output `[tokens, rows · b_out]`.
        x: Activations `[tokens, cols · b_in]`.
        row_offsets: `[rows + 1]`.
        col_indices: `[nnz]`.
        b_out: Rows of a block.
        b_in: Columns of a block.

    Returns:
        `[nnz, b_out, b_in]` in the dtype of `x`.
    """
    compute = compute_dtype(x.dtype)
    out = torch.empty(col_indices.numel(), b_out, b_in, dtype=compute, device=x.device)
    lefts, rights = grad.to(compute).t().split(b_out), x.to(compute).split(b_in, dim=1)
    for target, row, column in zip(out.unbind(0), block_rows(row_offsets), col_indices.tolist(), strict=True):
        torch.mm(lefts[row], rights[column], out=target)
    return out.to(x.dtype)
