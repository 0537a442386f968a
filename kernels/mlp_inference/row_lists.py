"""The index as the fast kernels read it: one entry a block row, longest rows first, with its block columns inline.

An entry is `[row, start, middle, end, column, column, …]`, int32, padded to a multiple of 32 entries (128 bytes):
blocks `start … end` of `values` belong to block row `row`, and the columns of those blocks follow in the same order.
In the gate-up product of a gated MLP the blocks `start … middle` are the gate's and `middle … end` the up
projection's; elsewhere `middle` equals `end`. One read of memory then brings all that a program needs to start
fetching weights, where offsets and column indices would be two dependent reads; and the last wave of programs holds
the shortest rows.
A block row without an entry is not computed.
"""

from __future__ import annotations

import torch
from torch import Tensor

HEADER = 4
ALIGNMENT = 32


def plain_row_list(row_offsets: Tensor, col_indices: Tensor, live_rows: Tensor | None = None) -> Tensor:
    """Row list of one matrix.

    Args:
        row_offsets: `[rows + 1]`.
        col_indices: `[nnz]`.
        live_rows: Bool `[rows]`, the rows that somebody reads; all if left out.

    Returns:
        int32 `[entries, width]`. Empty rows have an entry too: their output is the activation of the bias.
    """
    lengths = row_offsets.diff().long()
    return _records(lengths, torch.zeros_like(lengths), col_indices, live_rows)


def gated_row_list(
    gate_offsets: Tensor, gate_indices: Tensor, up_offsets: Tensor, up_indices: Tensor, live_rows: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Row list of a gate and an up projection with masks of their own, and the order in which their blocks are stored.

    Args:
        gate_offsets: `[rows + 1]`.
        gate_indices: `[nnz_gate]`.
        up_offsets: `[rows + 1]`.
        up_indices: `[nnz_up]`.
        live_rows: Bool `[rows]`, see `live_hidden_rows`; all if left out.

    Returns:
        Row list int32 `[entries, width]` and `order [nnz_gate + nnz_up]`, int64: the kernels want
        `torch.cat([gate_values, up_values])[order]`, row by row, gate blocks before up blocks.
    """
    gates, ups = gate_offsets.diff().long(), up_offsets.diff().long()
    rows = torch.arange(gates.numel(), device=gates.device)
    owner = torch.cat([torch.repeat_interleave(2 * rows, gates), torch.repeat_interleave(2 * rows + 1, ups)])
    order = torch.argsort(owner, stable=True)
    columns = torch.cat([gate_indices, up_indices])[order]
    return _records(gates, ups, columns, live_rows), order


def pack_tied(gate: Tensor, up: Tensor) -> Tensor:
    """Gate and up blocks of one shared mask as the kernels want them: eight rows of each in turn.

    Eight is the number of consecutive rows (or columns) that one thread's share of a tensor-core accumulator steps
    over: gate and up of an output element meet in the same thread, and splitting them moves no data.

    Args:
        gate: `[nnz, b_out, b_in]`.
        up: `[nnz, b_out, b_in]`.

    Returns:
        `[nnz, 2 · b_out, b_in]`.
    """
    nnz, b_out, b_in = gate.shape
    return torch.stack([gate.view(nnz, -1, 8, b_in), up.view(nnz, -1, 8, b_in)], dim=2).reshape(nnz, 2 * b_out, b_in)


def unpack_tied(values: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `pack_tied`: gate and up blocks, each `[nnz, b_out, b_in]`."""
    nnz, twice, b_in = values.shape
    gate, up = values.view(nnz, -1, 2, 8, b_in).unbind(2)
    return gate.reshape(nnz, twice // 2, b_in), up.reshape(nnz, twice // 2, b_in)


def live_hidden_rows(gate_offsets: Tensor, up_offsets: Tensor, down_indices: Tensor) -> Tensor:
    """Which hidden blocks of a gated MLP matter, bool `[rows]`.

    A hidden block is exactly zero if its gate row has no block (silu and gelu of zero are zero) or its up row has none,
    and it is of no use if no block of the down projection reads it.
    """
    read = torch.zeros(gate_offsets.numel() - 1, dtype=torch.bool, device=gate_offsets.device)
    read[down_indices.long()] = True
    return (gate_offsets.diff() > 0) & (up_offsets.diff() > 0) & read


def drop_columns(row_offsets: Tensor, col_indices: Tensor, live_columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A matrix without the blocks that read provably zero inputs.

    Args:
        row_offsets: `[rows + 1]`.
        col_indices: `[nnz]`.
        live_columns: Bool `[cols]`.

    Returns:
        `row_offsets [rows + 1]` and `col_indices [kept]`, int32, and `kept`, int64: take `values[kept]`.
    """
    keep = live_columns[col_indices.long()]
    counts = torch.zeros(keep.numel() + 1, dtype=torch.int64, device=keep.device)
    counts[1:] = keep.cumsum(0)
    return counts[row_offsets.long()].int(), col_indices[keep], keep.nonzero()[:, 0]


def _records(first: Tensor, second: Tensor, columns: Tensor, live_rows: Tensor | None) -> Tensor:
    total = first + second
    end = total.cumsum(0)
    start = end - total
    rows = torch.arange(total.numel(), device=total.device)
    longest = int(total.max()) if total.numel() else 0
    # One entry more than the longest row: the kernels fetch one column ahead.
    width = -(-(HEADER + longest + 1) // ALIGNMENT) * ALIGNMENT
    row_list = torch.zeros(total.numel(), width, dtype=torch.int32, device=total.device)
    row_list[:, :HEADER] = torch.stack([rows, start, start + first, end], dim=1).int()
    owner = torch.repeat_interleave(rows, total)
    position = torch.arange(columns.numel(), device=total.device) - start[owner]
    row_list[owner, HEADER + position] = columns.int()
    order = torch.argsort(total, descending=True, stable=True)
    if live_rows is not None:
        order = order[live_rows[order]]
    return row_list[order].contiguous()
