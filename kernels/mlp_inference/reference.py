"""The inference kernels in plain PyTorch: what they are compared with, and what runs on a CPU."""

from __future__ import annotations

import torch
from blast_kernels.common.dense import apply_activation, compute_dtype
from blast_kernels.common.quantize import dequantize
from blast_kernels.mlp_inference.row_lists import unpack_tied
from torch import Tensor


def product(
    x: Tensor,
    values: Tensor,
    row_list: Tensor,
    bias: Tensor | None,
    out_features: int,
    activation: str,
    gate: str,
    scales: Tensor | None = None,
) -> Tensor:
    """One product with its epilogue, from the row_list the fast kernels read (see `row_list`).

    Args:
        x: Activations `[tokens, in]`.
        values: Live blocks `[nnz, b_out, b_in]`; with `gate="tied"` gate and up packed, `[nnz, 2 · b_out, b_in]`.
        row_list: int32 `[entries, width]`.
        bias: `[out_features]` or None; None with a gate.
        out_features: Columns of the result.
        activation: `none`, `silu`, `gelu` or `gelu_tanh`.
        gate: `none`: `act(x · Wᵀ + bias)`; `untied` or `tied`: `act(x · Gᵀ) · (x · Uᵀ)`.
        scales: `[nnz]`, one for each block of `values` in fp8 (see `quantize`); None for values in the dtype of `x`.

    Returns:
        `[tokens, out_features]` in the dtype of `x`; zero at block rows without an entry.
    """
    compute = compute_dtype(x.dtype)
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

    for row, start, middle, end, *columns in row_list.tolist():
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
