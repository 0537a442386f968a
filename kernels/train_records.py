"""The indices of a sparse MLP as the training kernels read them, made once for a mask.

Hidden blocks that are provably zero, or that nobody reads, are left out of everything ("dead"); the others are
numbered afresh, so that what is saved and exchanged between the kernels holds no dead block. The gradients of weights
in dead rows and columns are exact zeros, and are written as such.

A *list record* (`train_gather`) is `[row, first, all, label, position, column, …]`, padded to a multiple of 32 entries,
longest first. A *group record* (`train_sample`) is `[shared, live, own, slot, …]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

HEADER = 4
ALIGNMENT = 32

Index = tuple[Tensor, Tensor]


class TrainLists(NamedTuple):
    """Lists of one MLP, all int32.

    Attributes:
        front: Of each live hidden block, the blocks of the gate and then of the up projection; label: its old number.
        down: Of each block row of the down projection, its blocks; columns are live hidden blocks.
        hidden: Of each live hidden block, the blocks of the down projection that read it; columns are block rows.
        inputs: Of each block column of the input, the blocks of gate and up that read it; columns are live hidden
            blocks, those of the up projection counted on behind those of the gate.
        front_groups: Groups for the gradient of the blocks of gate and up.
        down_groups: Groups for the gradient of the blocks of the down projection.
        live: Old numbers of the live hidden blocks `[live]`.
    """

    front: Tensor
    down: Tensor
    hidden: Tensor
    inputs: Tensor
    front_groups: Tensor
    down_groups: Tensor
    live: Tensor


def train_lists(
    front: Sequence[Index],
    down: Index,
    columns: int,
    tied: bool = False,
    members: tuple[int, int] | Callable[[int, int], tuple[int, int]] = (2, 2),
) -> TrainLists:
    """The lists of an MLP.

    Args:
        front: `row_offsets`, `col_indices` of the gate and the up projection, or of the only front matrix.
        down: `row_offsets`, `col_indices` of the down projection; its columns are the rows of the front.
        columns: Block columns of the front matrices.
        tied: Gate and up have one mask: each list of the front holds it once.
        members: Blocks of a group, for the front and for the down projection: 1, 2 or 4; or what gives them for so
            many live blocks of the two (`partial(train_plan.group_members, side)`).
    """
    device = down[0].device
    rows = front[0][0].numel() - 1
    read = torch.zeros(rows, dtype=torch.bool, device=device)
    read[down[1].long()] = True
    live = read
    if len(front) == 2:
        for offsets, _ in front:
            live = live & (offsets.diff() > 0)
    number = live.long().cumsum(0) - 1
    labels = live.nonzero()[:, 0]
    count = labels.numel()

    parts = [_entries(index) for index in front]
    row = torch.cat([part[0] for part in parts])
    column = torch.cat([part[1] for part in parts])
    position = torch.cat([part[2] for part in parts])
    second = torch.cat([torch.full_like(part[0], n) for n, part in enumerate(parts)])
    kept = live[row]
    once = kept & (second == 0) if tied else kept
    own = number[row] + second * count
    slot = position + second * front[0][1].numel()

    down_row, down_column, down_position = _entries(down)
    down_kept = live[down_column]
    down_own = number[down_column]
    if callable(members):
        members = members(int(kept.sum()), int(down_kept.sum()))
    return TrainLists(
        front=_lists(number[row], second, position, column, once, count, labels),
        down=_lists(down_row, 0 * down_row, down_position, down_own, down_kept, down[0].numel() - 1),
        hidden=_lists(down_own, 0 * down_row, down_position, down_row, down_kept, count),
        inputs=_lists(column, second, position, own, kept, columns),
        front_groups=_groups(column, own, slot, kept, members[0]),
        down_groups=_groups(down_row, down_own, down_position, down_kept, members[1]),
        live=labels.int(),
    )


def _entries(index: Index) -> tuple[Tensor, Tensor, Tensor]:
    """Row, column and position of each block."""
    offsets, columns = index
    lengths = offsets.diff().long()
    rows = torch.repeat_interleave(
        torch.arange(lengths.numel(), device=columns.device), lengths, output_size=columns.numel()
    )
    return rows, columns.long(), torch.arange(columns.numel(), device=columns.device)


def _lists(
    owner: Tensor, second: Tensor, position: Tensor, column: Tensor, kept: Tensor, owners: int,
    labels: Tensor | None = None,
) -> Tensor:  # fmt: skip
    owner, second, position, column = (tensor[kept] for tensor in (owner, second, position, column))
    order = torch.argsort(owner * 2 + second, stable=True)
    lengths = torch.bincount(owner, minlength=owners)
    firsts = torch.bincount(owner[second == 0], minlength=owners)
    start = lengths.cumsum(0) - lengths
    longest = int(lengths.max()) if owners else 0
    # One entry more than the longest list: the kernels fetch one entry ahead.
    width = -(-(HEADER + 2 * (longest + 1)) // ALIGNMENT) * ALIGNMENT
    records = torch.zeros(owners, width, dtype=torch.int32, device=owner.device)
    row = torch.arange(owners, device=owner.device)
    header = [row, firsts, lengths, row if labels is None else labels]
    records[:, :HEADER] = torch.stack(header, dim=1).int()
    owner = owner[order]
    at = HEADER + 2 * (torch.arange(owner.numel(), device=owner.device) - start[owner])
    records[owner, at] = position[order].int()
    records[owner, at + 1] = column[order].int()
    return records[torch.argsort(lengths, descending=True, stable=True)].contiguous()


def _groups(shared: Tensor, own: Tensor, slot: Tensor, kept: Tensor, members: int) -> Tensor:
    dead = slot[~kept]
    shared, own, slot = shared[kept], own[kept], slot[kept]
    order = torch.argsort(shared, stable=True)
    shared, own, slot = shared[order], own[order], slot[order]
    counts = torch.bincount(shared)
    start = counts.cumsum(0) - counts
    groups = -(-counts // members)
    first_group = groups.cumsum(0) - groups
    place = torch.arange(shared.numel(), device=shared.device) - start[shared]
    group, member = first_group[shared] + place // members, place % members
    full = int(groups.sum())
    empty = -(-dead.numel() // members)
    records = torch.zeros(full + empty, 2 + 2 * members, dtype=torch.int32, device=shared.device)
    records[:, 3::2] = -1
    records[group, 0] = shared.int()
    records[:full, 1] = 1
    records[group, 2 + 2 * member] = own.int()
    records[group, 3 + 2 * member] = slot.int()
    # A place without a block reads what the first of its group reads: no new traffic, and never stored.
    vacant = records[:full, 3::2] < 0
    records[:full, 2::2] = torch.where(vacant, records[:full, 2:3], records[:full, 2::2])
    at = torch.arange(dead.numel(), device=shared.device)
    records[full + at // members, 3 + 2 * (at % members)] = dead.int()
    return records
