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

import numpy as np
from blast_kernels.packed_upload import upload
from torch import Tensor

HEADER = 4
ALIGNMENT = 32

Index = tuple[Tensor, Tensor]
HostIndex = tuple[np.ndarray, np.ndarray]
Members = tuple[int, int] | Callable[[int, int], tuple[int, int]]


class TrainLists(NamedTuple):
    """Lists of one MLP, all int32; tensors for the kernels, or (`train_arrays`) arrays of the host.

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

    front: Tensor | np.ndarray
    down: Tensor | np.ndarray
    hidden: Tensor | np.ndarray
    inputs: Tensor | np.ndarray
    front_groups: Tensor | np.ndarray
    down_groups: Tensor | np.ndarray
    live: Tensor | np.ndarray


def train_lists(
    front: Sequence[Index], down: Index, columns: int, tied: bool = False, members: Members = (2, 2)
) -> TrainLists:
    """The lists of an MLP.

    They are made on the host, since that takes many small steps, and copied in one transfer.

    Args:
        front: `row_offsets`, `col_indices` of the gate and the up projection, or of the only front matrix.
        down: `row_offsets`, `col_indices` of the down projection; its columns are the rows of the front.
        columns: Block columns of the front matrices.
        tied: Gate and up have one mask: each list of the front holds it once.
        members: Blocks of a group, for the front and for the down projection: 1, 2 or 4; or what gives them for so
            many live blocks of the two (`partial(train_plan.group_members, side)`).

    Returns:
        Tensors on the device of `down`.
    """
    *ours, last = [tuple(tensor.cpu().numpy() for tensor in index) for index in (*front, down)]
    return TrainLists(*upload(train_arrays(ours, last, columns, tied, members), down[0].device))


def train_arrays(
    front: Sequence[HostIndex], down: HostIndex, columns: int, tied: bool = False, members: Members = (2, 2)
) -> TrainLists:
    """`train_lists` from arrays of the host, as arrays of the host."""
    rows = front[0][0].size - 1
    live = np.zeros(rows, dtype=bool)
    live[down[1]] = True
    if len(front) == 2:
        for offsets, _ in front:
            live = live & (np.diff(offsets) > 0)
    number = live.cumsum() - 1
    labels = np.flatnonzero(live)
    count = labels.size

    row, column, position, second = _joined(front)
    kept = live[row]
    once = kept & (second == 0) if tied else kept
    own = number[row] + second * count
    slot = position + second * front[0][1].size

    down_row, down_column, down_position = _entries(down)
    down_kept = live[down_column]
    down_own = number[down_column]
    down_second = np.zeros_like(down_row)
    if callable(members):
        members = members(int(kept.sum()), int(down_kept.sum()))
    return TrainLists(
        front=_lists(number[row], second, position, column, once, count, labels),
        down=_lists(down_row, down_second, down_position, down_own, down_kept, down[0].size - 1),
        hidden=_lists(down_own, down_second, down_position, down_row, down_kept, count),
        inputs=_lists(column, second, position, own, kept, columns),
        front_groups=_groups(column, own, slot, kept, members[0]),
        down_groups=_groups(down_row, down_own, down_position, down_kept, members[1]),
        live=labels.astype(np.int32),
    )


def whole_arrays(front: Sequence[HostIndex], down: HostIndex, tied: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """`front` and `hidden` of the lists, with no hidden block left out, dead or not: what dense gradients follow from.

    Args:
        front: As for `train_lists`.
        down: As there.
        tied: As there.
    """
    rows = front[0][0].size - 1
    row, column, position, second = _joined(front)
    down_row, down_column, down_position = _entries(down)
    return (
        _lists(row, second, position, column, second == 0 if tied else slice(None), rows),
        _lists(down_column, np.zeros_like(down_row), down_position, down_row, slice(None), rows),
    )


def _joined(front: Sequence[HostIndex]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Row, column and position of each block of one or two matrices, and which of the two it is of."""
    parts = [_entries(index) for index in front]
    row, column, position = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return row, column, position, np.repeat(np.arange(len(parts)), [part[0].size for part in parts])


def _entries(index: HostIndex) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, column and position of each block, int64."""
    offsets, columns = index
    rows = np.repeat(np.arange(offsets.size - 1), np.diff(offsets))
    return rows, columns.astype(np.int64), np.arange(columns.size)


def _lists(
    owner: np.ndarray, second: np.ndarray, position: np.ndarray, column: np.ndarray, kept: np.ndarray | slice,
    owners: int, labels: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    owner, second, position, column = (array[kept] for array in (owner, second, position, column))
    order = np.argsort(owner * 2 + second, kind="stable")
    lengths = np.bincount(owner, minlength=owners)
    start = lengths.cumsum() - lengths
    longest = int(lengths.max()) if owners else 0
    # One entry more than the longest list: the kernels fetch one entry ahead.
    width = -(-(HEADER + 2 * (longest + 1)) // ALIGNMENT) * ALIGNMENT
    records = np.zeros((owners, width), dtype=np.int32)
    records[:, 0] = np.arange(owners)
    records[:, 1] = np.bincount(owner[second == 0], minlength=owners)
    records[:, 2] = lengths
    records[:, 3] = records[:, 0] if labels is None else labels
    owner = owner[order]
    at = HEADER + 2 * (np.arange(owner.size) - start[owner])
    records[owner, at] = position[order]
    records[owner, at + 1] = column[order]
    return records[np.argsort(-lengths, kind="stable")]


def _groups(shared: np.ndarray, own: np.ndarray, slot: np.ndarray, kept: np.ndarray, members: int) -> np.ndarray:
    dead = slot[~kept]
    shared, own, slot = shared[kept], own[kept], slot[kept]
    order = np.argsort(shared, kind="stable")
    shared, own, slot = shared[order], own[order], slot[order]
    counts = np.bincount(shared)
    start = counts.cumsum() - counts
    groups = -(-counts // members)
    first_group = groups.cumsum() - groups
    place = np.arange(shared.size) - start[shared]
    group, member = first_group[shared] + place // members, place % members
    full = int(groups.sum())
    empty = -(-dead.size // members)
    records = np.zeros((full + empty, 2 + 2 * members), dtype=np.int32)
    records[:, 3::2] = -1
    records[group, 0] = shared
    records[:full, 1] = 1
    records[group, 2 + 2 * member] = own
    records[group, 3 + 2 * member] = slot
    # A place without a block reads what the first of its group reads: no new traffic, and never stored.
    vacant = records[:full, 3::2] < 0
    records[:full, 2::2] = np.where(vacant, records[:full, 2:3], records[:full, 2::2])
    at = np.arange(dead.size)
    records[full + at // members, 3 + 2 * (at % members)] = dead
    return records
