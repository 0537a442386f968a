"""What the kernels compute, in plain PyTorch: what every kernel is compared with, and the CPU implementation.

`W` is block-CSR: `values [nnz, b_out, b_in]`, `row_offsets [rows + 1]` and `col_indices [nnz]`, where block `n` of
block row `r` (`row_offsets[r] <= n < row_offsets[r + 1]`) is at block column `col_indices[n]` of `W [out, in]`.
Half-precision operands are multiplied and summed in float32 and rounded once, at the end.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from blast_kernels.quantize import dequantize
from blast_kernels.records import unpack_tied
from torch import Tensor


def block_matmul(x: Tensor, values: Tensor, row_offsets: Tensor, col_indices: Tensor, bias: Tensor | None) -> Tensor:
    """`x · Wᵀ + bias`, one small product a live block, added in place in the order of `values`.

    On a CPU this is also the fastest form tried: nothing is gathered or padded (2048×8192, blocks of 64, 95 % empty,
    512 tokens, one core: 17 ms; gathered batched products 35-58 ms; dense 212 ms).

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
    compute = _compute_dtype(x.dtype)
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
    compute = _compute_dtype(grad.dtype)
    out = torch.zeros(grad.shape[0], cols * b_in, dtype=compute, device=grad.device)
    inputs, outputs = grad.to(compute).split(b_out, dim=1), out.split(b_in, dim=1)
    blocks = values.to(compute).unbind(0)
    for block, row, column in zip(blocks, block_rows(row_offsets), col_indices.tolist(), strict=True):
        outputs[column].addmm_(inputs[row], block)
    return out.to(grad.dtype)


def value_grad(grad: Tensor, x: Tensor, row_offsets: Tensor, col_indices: Tensor, b_out: int, b_in: int) -> Tensor:
    """`gradᵀ · x` on the live blocks alone: the gradient with respect to `values`.

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
    compute = _compute_dtype(x.dtype)
    out = torch.empty(col_indices.numel(), b_out, b_in, dtype=compute, device=x.device)
    lefts, rights = grad.to(compute).t().split(b_out), x.to(compute).split(b_in, dim=1)
    for target, row, column in zip(out.unbind(0), block_rows(row_offsets), col_indices.tolist(), strict=True):
        torch.mm(lefts[row], rights[column], out=target)
    return out.to(x.dtype)


def block_rows(row_offsets: Tensor) -> list[int]:
    """Block row of each live block."""
    lengths = row_offsets.diff().tolist()
    return [row for row, length in enumerate(lengths) for _ in range(length)]


def to_dense(values: Tensor, row_offsets: Tensor, col_indices: Tensor, cols: int) -> Tensor:
    """The matrix `[rows · b_out, cols · b_in]` with zeros where no block is live."""
    b_out, b_in = values.shape[1:]
    rows = row_offsets.numel() - 1
    tiles = values.new_zeros(rows, cols, b_out, b_in)
    tiles[block_rows(row_offsets), col_indices.tolist()] = values
    return tiles.transpose(1, 2).reshape(rows * b_out, cols * b_in)


def product(
    x: Tensor,
    values: Tensor,
    records: Tensor,
    bias: Tensor | None,
    out_features: int,
    activation: str,
    gate: str,
    scales: Tensor | None = None,
) -> Tensor:
    """One product with its epilogue, from the records the fast kernels read (see `records`).

    Args:
        x: Activations `[tokens, in]`.
        values: Live blocks `[nnz, b_out, b_in]`; with `gate="tied"` gate and up packed, `[nnz, 2 · b_out, b_in]`.
        records: int32 `[records, width]`.
        bias: `[out_features]` or None; None with a gate.
        out_features: Columns of the result.
        activation: `none`, `silu`, `gelu` or `gelu_tanh`.
        gate: `none`: `act(x · Wᵀ + bias)`; `untied` or `tied`: `act(x · Gᵀ) · (x · Uᵀ)`.
        scales: `[nnz]`, one for each block of `values` in fp8 (see `quantize`); None for values in the dtype of `x`.

    Returns:
        `[tokens, out_features]` in the dtype of `x`; zero at block rows without a record.
    """
    compute = _compute_dtype(x.dtype)
    if scales is not None:
        values = dequantize(values, scales, compute)
    gate_values, up_values = unpack_tied(values) if gate == "tied" else (values, values)
    gate_blocks, up_blocks = gate_values.to(compute).transpose(1, 2), up_values.to(compute).transpose(1, 2)
    b_in, b_out = gate_blocks.shape[1:]
    inputs = x.to(compute).split(b_in, dim=1)
    out = torch.zeros(x.shape[0], out_features, dtype=compute, device=x.device)
    outputs = out.split(b_out, dim=1)
    biases = None if bias is None else bias.to(compute).split(b_out)

    def add(target: Tensor, blocks: Tensor, first: int, last: int, columns: list[int]) -> Tensor:
        for block, column in zip(blocks[first:last], columns, strict=False):
            target.addmm_(inputs[column], block)
        return target

    for row, start, middle, end, *columns in records.tolist():
        if biases is not None:
            outputs[row].add_(biases[row])
        total = add(outputs[row], gate_blocks, start, middle, columns)
        result = apply_activation(total, activation)
        if gate == "untied":
            result = result * add(torch.zeros_like(total), up_blocks, middle, end, columns[middle - start :])
        elif gate == "tied":
            result = result * add(torch.zeros_like(total), up_blocks, start, end, columns)
        total.copy_(result)
    return out.to(x.dtype)


def apply_activation(x: Tensor, name: str) -> Tensor:
    """`silu`, `gelu` (exact), `gelu_tanh` or `none` of `x`.

    Raises:
        ValueError: for any other name.
    """
    if name == "silu":
        return F.silu(x)
    if name == "gelu":
        return F.gelu(x)
    if name == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    if name == "none":
        return x
    raise ValueError(f"activation {name!r} is unknown; use one of silu, gelu, gelu_tanh, none")


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
