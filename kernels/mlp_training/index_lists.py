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
from blast_kernels.common.batched_copy import batched_copy
from torch import Tensor

HEADER = 4
ALIGNMENT = 32

Index = tuple[Tensor, Tensor]
HostIndex = tuple[np.ndarray, np.ndarray]
HostMlp = tuple[Sequence[HostIndex], HostIndex]
Members = tuple[int, int] | Callable[[int, int], tuple[int, int]]


class IndexLists(NamedTuple):
    """Lists of one MLP, all int32; tensors for the kernels, or (`index_arrays`) arrays of the host.

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


def index_lists_on_device(
    front: Sequence[Index], down: Index, columns: int, tied: bool = False, members: Members = (2, 2)
) -> IndexLists:
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
    (made,) = index_arrays([(ours, last)], columns, tied, members)
    return IndexLists(*batched_copy(made, down[0].device))


def index_arrays(
    mlps: Sequence[HostMlp], columns: int, tied: bool = False, members: Members = (2, 2)
) -> list[IndexLists]:
    """`index_lists_on_device` of several MLPs at once, from arrays of the host, as arrays of the host.

    It takes many small steps, whose number does not grow with that of the MLPs.

    Args:
        mlps: Of each MLP `front` and `down`; all of them have as many matrices, block rows and block columns.
        columns: As there.
        tied: As there.
        members: As there.
    """
    front, down = _joined(mlps)
    rows, outs = (offsets.size - 1 for offsets in (mlps[0][0][0][0], mlps[0][1][0]))
    live = np.zeros((len(mlps), rows), dtype=bool)
    live[down.mlp, down.column] = True
    if len(mlps[0][0]) == 2:
        for n in range(2):
            live &= np.diff(np.stack([fronts[n][0] for fronts, _ in mlps])) > 0
    number, counts = live.cumsum(1) - 1, live.sum(1)
    of, labels = np.nonzero(live)

    kept, down_kept = live[front.mlp, front.row], live[down.mlp, down.column]
    once = kept & (front.second == 0) if tied else kept
    hidden, down_hidden = number[front.mlp, front.row], number[down.mlp, down.column]
    own = hidden + front.second * counts[front.mlp]
    firsts = np.array([fronts[0][1].size for fronts, _ in mlps])
    slot = front.position + front.second * firsts[front.mlp]
    if callable(members):
        pairs = zip(_sums(kept, front.mlp, len(mlps)), _sums(down_kept, down.mlp, len(mlps)), strict=True)
        members = [members(int(ours), int(last)) for ours, last in pairs]
    else:
        members = [members] * len(mlps)
    all_outs, all_columns = np.full(len(mlps), outs), np.full(len(mlps), columns)
    front_members, down_members = np.array(members).T
    parts = zip(
        _lists(front._replace(row=hidden), once, counts, labels),
        _lists(down._replace(column=down_hidden), down_kept, all_outs),
        _lists(down._replace(row=down_hidden, column=down.row), down_kept, counts),
        _lists(front._replace(row=front.column, column=own), kept, all_columns),
        _groups(front._replace(row=front.column, column=own, position=slot), kept, columns, front_members),
        _groups(down._replace(column=down_hidden), down_kept, outs, down_members),
        _split(labels.astype(np.int32), of, len(mlps)),
        strict=True,
    )
    return [IndexLists(*lists) for lists in parts]


def complete_arrays(mlps: Sequence[HostMlp], tied: bool = False) -> list[tuple[np.ndarray, np.ndarray]]:
    """`front` and `hidden` of the lists, with no hidden block left out, dead or not: what dense gradients follow from.

    Args:
        mlps: As for `index_arrays`.
        tied: As there.
    """
    front, down = _joined(mlps)
    rows = np.full(len(mlps), mlps[0][0][0][0].size - 1)
    once = front.second == 0 if tied else slice(None)
    turned = down._replace(row=down.column, column=down.row)
    return list(zip(_lists(front, once, rows), _lists(turned, slice(None), rows), strict=True))


class _Blocks(NamedTuple):
    """The blocks of matrices of several MLPs, one entry each, int64."""

    mlp: np.ndarray
    row: np.ndarray
    column: np.ndarray
    position: np.ndarray
    second: np.ndarray

    def of(self, which: np.ndarray | slice) -> _Blocks:
        return _Blocks(*(array[which] for array in self))


def _joined(mlps: Sequence[HostMlp]) -> tuple[_Blocks, _Blocks]:
    """The blocks of all fronts, gates first, and of all down projections."""
    fronts = [(mlp, second, index) for mlp, (front, _) in enumerate(mlps) for second, index in enumerate(front)]
    return _blocks(fronts), _blocks([(mlp, 0, down) for mlp, (_, down) in enumerate(mlps)])


def _blocks(matrices: Sequence[tuple[int, int, HostIndex]]) -> _Blocks:
    sizes = np.array([columns.size for _, _, (_, columns) in matrices])
    rows = matrices[0][2][0].size - 1
    lengths = np.diff(np.stack([offsets for _, _, (offsets, _) in matrices]))
    return _Blocks(
        np.repeat([mlp for mlp, _, _ in matrices], sizes),
        np.repeat(np.tile(np.arange(rows), len(matrices)), lengths.reshape(-1)),
        np.concatenate([columns for _, _, (_, columns) in matrices]).astype(np.int64),
        np.arange(sizes.sum()) - np.repeat(sizes.cumsum() - sizes, sizes),
        np.repeat([second for _, second, _ in matrices], sizes),
    )


def _sums(values: np.ndarray, of: np.ndarray, count: int) -> np.ndarray:
    """The sum of the values of each MLP."""
    return np.bincount(of, weights=values, minlength=count).astype(np.int64)


def _split(array: np.ndarray, of: np.ndarray, count: int) -> list[np.ndarray]:
    """The entries of each MLP, which lie together."""
    return np.split(array, np.bincount(of, minlength=count).cumsum()[:-1])


def _lists(
    blocks: _Blocks, kept: np.ndarray | slice, owners: np.ndarray, labels: np.ndarray | None = None
) -> list[np.ndarray]:
    """List records of each MLP.

    Args:
        blocks: `row` is the owner of the list that a block is in.
        kept: Which of them.
        owners: How many lists each MLP has.
        labels: Of the lists of all MLPs; their numbers if left out.
    """
    blocks = blocks.of(kept)
    first = owners.cumsum() - owners
    of = np.repeat(np.arange(owners.size), owners)
    owner = blocks.row + first[blocks.mlp]
    order = np.argsort(owner * 2 + blocks.second, kind="stable")
    lengths = np.bincount(owner, minlength=of.size)
    start = lengths.cumsum() - lengths
    # One entry more than the longest list: the kernels fetch one entry ahead.
    longest = np.array([part.max() if part.size else 0 for part in np.split(lengths, first[1:])])
    widths = -(-(HEADER + 2 * (longest + 1)) // ALIGNMENT) * ALIGNMENT
    records = np.zeros((of.size, widths.max()), dtype=np.int32)
    records[:, 0] = np.arange(of.size) - first[of]
    records[:, 1] = np.bincount(owner[blocks.second == 0], minlength=of.size)
    records[:, 2] = lengths
    records[:, 3] = records[:, 0] if labels is None else labels
    owner = owner[order]
    at = HEADER + 2 * (np.arange(owner.size) - start[owner])
    records[owner, at] = blocks.position[order]
    records[owner, at + 1] = blocks.column[order]
    records = records[np.lexsort((-lengths, of))]
    return [part[:, :width] for part, width in zip(np.split(records, first[1:]), widths, strict=True)]


def _groups(blocks: _Blocks, kept: np.ndarray, sides: int, members: np.ndarray) -> list[np.ndarray]:
    """Group records of each MLP.

    Args:
        blocks: `row` is what the blocks of a group share, `column` what each has for itself, `position` its slot.
        kept: Which of them have a gradient that is not known to be zero.
        sides: How many rows there are in an MLP.
        members: Blocks of a group, of each MLP.
    """
    dead, blocks = blocks.of(~kept), blocks.of(kept)
    shared = blocks.row + sides * blocks.mlp
    order = np.argsort(shared, kind="stable")
    blocks, shared = blocks.of(order), shared[order]
    counts = np.bincount(shared, minlength=sides * members.size)
    start = counts.cumsum() - counts
    groups = -(-counts // np.repeat(members, sides))
    first_group = groups.cumsum() - groups
    of_group = np.repeat(np.repeat(np.arange(members.size), sides), groups)
    place, most = np.arange(shared.size) - start[shared], members[blocks.mlp]
    group, member = first_group[shared] + place // most, place % most
    full = np.zeros((of_group.size, 2 + 2 * members.max()), dtype=np.int32)
    full[:, 3::2] = -1
    full[group, 0] = blocks.row
    full[:, 1] = 1
    full[group, 2 + 2 * member] = blocks.column
    full[group, 3 + 2 * member] = blocks.position
    # A place without a block reads what the first of its group reads: no new traffic, and never stored.
    full[:, 2::2] = np.where(full[:, 3::2] < 0, full[:, 2:3], full[:, 2::2])

    number = _sums(np.ones(dead.mlp.size), dead.mlp, members.size)
    empties = -(-number // members)
    first_dead, first_empty = number.cumsum() - number, empties.cumsum() - empties
    at, most = np.arange(dead.mlp.size) - np.repeat(first_dead, number), members[dead.mlp]
    empty = np.zeros((empties.sum(), full.shape[1]), dtype=np.int32)
    empty[:, 3::2] = -1
    empty[first_empty[dead.mlp] + at // most, 3 + 2 * (at % most)] = dead.position
    halves = zip(_split(full, of_group, members.size), np.split(empty, first_empty[1:]), members, strict=True)
    return [np.concatenate(parts)[:, : 2 + 2 * most] for *parts, most in halves]
