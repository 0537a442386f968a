"""The index as the fast kernels read it: one entry a block row, longest rows first, with its block columns inline.

An entry is `[row, start, up_start, count + up_count · 2¹⁶, column, column, …]`, int32, padded to a multiple of 32
entries (128 bytes). The `count` blocks of `values` from block `start` on belong to block row `row`. Where gate and up
have masks of their own, the `up_count` blocks of the up projection from `up_start` on belong to it too. The columns
follow in the same order, those of the gate first. Elsewhere `up_count` is 0.
One read of memory then brings all that a program needs to start fetching weights, where offsets and column indices
would be two dependent reads. The header and the first four columns are one sector of 32 bytes: a longer header made
short rows wait for a second one. The last wave of programs holds the shortest rows.
A block row without an entry is not computed.

If only some blocks of a matrix are read, its entries hold `column + place · 2¹⁶` for each of these: the block is
`values[start + place]`.
"""

from __future__ import annotations

import torch
from blast_kernels.common.constants import HALF, HEADER
from torch import Tensor

ALIGNMENT = 32


def plain_row_list(
    row_offsets: Tensor, col_indices: Tensor, live_rows: Tensor | None = None, places: Tensor | None = None
) -> Tensor:
    """Row list of one matrix, or of a gate and an up projection that share one mask.

    Args:
        row_offsets: `[rows + 1]`.
        col_indices: `[nnz]`.
        live_rows: Bool `[rows]`, the rows that somebody reads; all if left out.
        places: `[nnz]`, where each block is in `values` (see `drop_columns`), ascending; in order if left out.

    Returns:
        int32 `[entries, width]`. Empty rows have an entry too: their output is the activation of the bias.

    Raises:
        ValueError: if the matrix has 32,768 block columns or more.
    """
    lengths = row_offsets.diff().long()
    return _records(lengths, torch.zeros_like(lengths), col_indices, live_rows, places)


def gated_row_list(
    gate_offsets: Tensor, gate_indices: Tensor, up_offsets: Tensor, up_indices: Tensor, live_rows: Tensor | None = None
) -> Tensor:
    """Row list of a gate and an up projection with masks of their own.

    Args:
        gate_offsets: `[rows + 1]`.
        gate_indices: `[nnz_gate]`.
        up_offsets: `[rows + 1]`.
        up_indices: `[nnz_up]`.
        live_rows: Bool `[rows]`, see `live_hidden_rows`; all if left out.

    Returns:
        int32 `[entries, width]`.
    """
    gates, ups = gate_offsets.diff().long(), up_offsets.diff().long()
    rows = torch.arange(gates.numel(), device=gates.device)
    owner = torch.cat([torch.repeat_interleave(2 * rows, gates), torch.repeat_interleave(2 * rows + 1, ups)])
    order = torch.argsort(owner, stable=True)
    columns = torch.cat([gate_indices, up_indices])[order]
    return _records(gates, ups, columns, live_rows)


def block_counts(row_list: Tensor) -> Tensor:
    """How many blocks each entry names, those of gate and up together, `[row_list]`."""
    counts = row_list[:, HEADER - 1].long()
    return counts % (1 << HALF) + (counts >> HALF)


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
        `row_offsets [rows + 1]` and `col_indices [kept]`, int32, and `kept`, int64: the places of these blocks in
        `values`.
    """
    keep = live_columns[col_indices.long()]
    counts = torch.zeros(keep.numel() + 1, dtype=torch.int64, device=keep.device)
    counts[1:] = keep.cumsum(0)
    return counts[row_offsets.long()].int(), col_indices[keep], keep.nonzero()[:, 0]


def _records(
    first: Tensor, second: Tensor, columns: Tensor, live_rows: Tensor | None, places: Tensor | None = None
) -> Tensor:
    total = first + second
    start, up_start, listed = (lengths.cumsum(0) - lengths for lengths in (first, second, total))
    rows = torch.arange(total.numel(), device=total.device)
    longest = int(total.max()) if total.numel() else 0
    # One entry more than the longest row: the kernels fetch one column ahead.
    width = -(-(HEADER + longest + 1) // ALIGNMENT) * ALIGNMENT
    widest = 0 if places is None or not columns.numel() else 1 + int(columns.max())
    if max(longest, widest) >= 1 << (HALF - 1):
        raise ValueError(f"a matrix of {max(longest, widest)} block columns is too wide; use larger blocks")
    owner = torch.repeat_interleave(rows, total)
    entries = columns.long()
    if places is not None:
        # A row starts at its first block that is read.
        start = torch.cat([places, places.new_zeros(1)])[start]
        entries = entries + ((places - start[owner]) << HALF)
    row_list = torch.zeros(total.numel(), width, dtype=torch.int32, device=total.device)
    row_list[:, :HEADER] = torch.stack([rows, start, up_start, first + (second << HALF)], dim=1).int()
    row_list[owner, HEADER + torch.arange(columns.numel(), device=total.device) - listed[owner]] = entries.int()
    order = torch.argsort(total, descending=True, stable=True)
    if live_rows is not None:
        order = order[live_rows[order]]
    return row_list[order].contiguous()
