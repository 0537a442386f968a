"""The inference kernels in plain PyTorch: what they are compared with, and what runs on a CPU."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from blast_kernels.common.constants import HALF
from blast_kernels.common.dense import apply_activation, compute_dtype
from blast_kernels.common.quantize import dequantize
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
    up: Tensor | None = None,
    up_scales: Tensor | None = None,
    blocks: int | None = None,
) -> Tensor:
    """One product with its epilogue, from the row_list the fast kernels read (see `row_lists`).

    Args:
        x: Activations `[tokens, in]`.
        values: Live blocks `[nnz, b_out, b_in]`; the gate's where there is one.
        row_list: int32 `[entries, width]`.
        bias: `[out_features]` or None; None with a gate.
        out_features: Columns of the result.
        activation: `none`, `silu`, `gelu` or `gelu_tanh`.
        gate: `none`: `act(x · Wᵀ + bias)`; `untied` or `tied`: `act(x · Gᵀ) · (x · Uᵀ)`.
        scales: `[nnz]`, one for each block of `values` in fp8 (see `quantize`); None for values in the dtype of `x`.
        up: Live blocks `[nnz of up, b_out, b_in]` of the up projection where there is a gate; None otherwise.
        up_scales: As `scales`, of `up`; None where gate and up share a mask, and with it the scales.
        blocks: How many blocks the row_list name, if they give the place of each; None if they do not.

    Returns:
        `[tokens, out_features]` in the dtype of `x`; zero at block rows without an entry.
    """
    compute = compute_dtype(x.dtype)
    if scales is not None:
        values = dequantize(values, scales, compute)
        up = None if up is None else dequantize(up, scales if gate == "tied" else up_scales, compute)
    first_blocks = values.to(compute).transpose(1, 2)
    up_blocks = None if up is None else up.to(compute).transpose(1, 2)
    b_in, b_out = first_blocks.shape[1:]
    inputs = x.to(compute).split(b_in, dim=1)
    out = torch.zeros(x.shape[0], out_features, dtype=compute, device=x.device)
    outputs = out.split(b_out, dim=1)
    biases = None if bias is None else bias.to(compute).split(b_out)

    def add(target: Tensor, stored: Tensor, places: Iterable[int], columns: list[int]) -> Tensor:
        for place, column in zip(places, columns, strict=False):
            target.addmm_(inputs[column], stored[place])
        return target

    for row, start, up_start, counts, *columns in row_list.tolist():
        up_count, count = divmod(counts, 1 << HALF)
        places = range(start, start + count)
        if blocks is not None:
            places = [start + (entry >> HALF) for entry in columns[:count]]
            columns = [entry % (1 << HALF) for entry in columns]
        if biases is not None:
            outputs[row].add_(biases[row])
        total = add(outputs[row], first_blocks, places, columns)
        result = apply_activation(total, activation)
        if gate == "untied":
            places = range(up_start, up_start + up_count)
            result = result * add(torch.zeros_like(total), up_blocks, places, columns[count:])
        elif gate == "tied":
            result = result * add(torch.zeros_like(total), up_blocks, places, columns)
        total.copy_(result)
    return out.to(x.dtype)
