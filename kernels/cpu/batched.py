"""Products for few tokens in plain PyTorch: the blocks as batches of small products, summed by block row.

It runs on a processor where the C++ kernels do not: without a compiler, in other dtypes, with other blocks. One product
for each block, as the references make it, is faster from about 64 tokens on. One core, 8192×2048, blocks of 64, 80 %
empty, bfloat16, against the reference: 1 token 1.2 and 3.7 ms, 16 tokens 3.1 and 5.1, 512 tokens 93 and 54.
"""

from __future__ import annotations

import torch
from blast_kernels.common.constants import HALF, HEADER
from blast_kernels.common.dense import apply_activation, compute_dtype
from torch import Tensor

MOST_TOKENS = 32
# Elements of the blocks that are multiplied at a time: in float32 they stay in the cache.
BATCH = 1 << 18


def pays(x: Tensor) -> bool:
    """Whether to use these instead of the references."""
    return x.device.type == "cpu" and x.shape[0] <= MOST_TOKENS


def linear(x: Tensor, values: Tensor, row_offsets: Tensor, col_indices: Tensor, bias: Tensor | None) -> Tensor:
    """`x · Wᵀ + bias`; arguments as `blast_kernels.linear.reference.block_matmul`."""
    lengths = row_offsets.diff().long()
    rows = torch.repeat_interleave(torch.arange(lengths.numel(), device=x.device), lengths)
    y = _sums(x, values, rows, None, col_indices.long(), lengths.numel() * values.shape[1])
    return (y if bias is None else y + bias).to(x.dtype)


def product(
    x: Tensor,
    values: Tensor,
    row_list: Tensor,
    bias: Tensor | None,
    out_features: int,
    activation: str,
    gate: str,
    up: Tensor | None = None,
    blocks: int | None = None,
) -> Tensor:
    """One product with its epilogue; arguments as `blast_kernels.mlp_inference.reference.product`, without fp8."""
    header, listed = row_list[:, :HEADER].long(), row_list[:, HEADER:].long()
    row, start, up_start, counts = header.unbind(1)
    count, up_count = counts % (1 << HALF), counts >> HALF
    order = torch.arange(listed.shape[1], device=x.device)
    is_main = order < count[:, None]
    owner, offset = is_main.nonzero().unbind(1)
    columns = listed[is_main]
    if blocks is not None:
        columns, offset = columns % (1 << HALF), columns >> HALF
    places = start[owner] + offset
    y = _sums(x, values, row[owner], places, columns, out_features)
    if bias is not None:
        y += bias
    y = apply_activation(y, activation)
    if gate == "tied":
        y *= _sums(x, up, row[owner], places, columns, out_features)
    elif gate == "untied":
        is_up = (order >= count[:, None]) & (order < (count + up_count)[:, None])
        owner, offset = is_up.nonzero().unbind(1)
        places = up_start[owner] + offset - count[owner]
        y *= _sums(x, up, row[owner], places, listed[is_up], out_features)
    if row_list.shape[0] * values.shape[1] < out_features:
        # Block rows without an entry are zero, whatever their bias.
        has_entry = torch.zeros(out_features // values.shape[1], dtype=torch.bool, device=x.device).index_fill_(
            0, row, True
        )
        y = torch.where(has_entry.repeat_interleave(values.shape[1]), y, 0)
    return y.to(x.dtype)


def _sums(x: Tensor, values: Tensor, rows: Tensor, places: Tensor | None, columns: Tensor, out_features: int) -> Tensor:
    """`Σ x[column] · values[place]ᵀ` for each block row: `[tokens, out_features]`, float32 (float64 for float64)."""
    _, b_out, b_in = values.shape
    compute, tokens = compute_dtype(x.dtype), x.shape[0]
    inputs = x.to(compute).view(tokens, x.shape[1] // b_in, b_in).transpose(0, 1)  # [columns, tokens, b_in]
    y = torch.zeros(out_features // b_out, tokens, b_out, dtype=compute, device=x.device)
    step = max(1, BATCH // (b_out * b_in))
    with torch.autocast("cpu", enabled=False):  # it is on inside an operator too
        for first in range(0, rows.numel(), step):
            some = slice(first, first + step)
            blocks = (values[some] if places is None else values[places[some]]).to(compute)
            y.index_add_(0, rows[some], torch.bmm(inputs[columns[some]], blocks.transpose(1, 2)))
    return y.transpose(0, 1).reshape(tokens, out_features)
