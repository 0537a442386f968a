"""The indices of a sparse MLP as the training kernels read them, built once for each mask.

Hidden blocks that are zero in any case, or that nothing reads, are called dead and left out of all lists. The others
("live") are numbered anew, so saved tensors and tensors between kernels hold no dead block. Gradients of weights in
dead rows and columns are exactly zero, and are written as zeros.

There are two kinds of lists, both int32 matrices with one list in each row:
- a *row list* `[row, first, all, label, position, column, position, column, …]`: output block `row` is the sum of `all`
  products of block `position` of the values with block column `column` of the activations. The first `first` of them
  use the first of two value tensors. Lists are padded to a multiple of 32 entries and sorted, longest first.
- a *block group* `[shared, live, own, slot, own, slot, …]`: blocks whose gradients one program of the SDDMM kernel
  computes. Member `own` times the operand block `shared` gives block `slot` of the gradient. `slot` is -1 where a group
  is not full; `live` is 0 where the gradient is known to be zero.
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
CpuIndex = tuple[np.ndarray, np.ndarray]
CpuMlp = tuple[Sequence[CpuIndex], CpuIndex]
Members = tuple[int, int] | Callable[[int, int], tuple[int, int]]


class IndexLists(NamedTuple):
    """The lists of one MLP, all int32: tensors for the kernels, or NumPy arrays (`index_arrays`).

    Attributes:
        gate_up: Row lists of the gate-up product: for each live hidden block, the blocks of the gate and then of the up
            projection. `label` is its old number.
        down: Row lists of the down projection: for each of its block rows, its blocks. Columns are live hidden blocks.
        hidden_grad: Row lists of the gradient of the hidden activations: for each live hidden block, the blocks of the
            down projection that read it. Columns are block rows of the down projection.
        input_grad: Row lists of the gradient of the input: for each block column of the input, the blocks of gate and
            up that read it. Columns are live hidden blocks; those of the up projection follow after the gate's.
        gate_up_groups: Block groups for the gradient of the blocks of gate and up.
        down_groups: Block groups for the gradient of the blocks of the down projection.
        live: Old numbers of the live hidden blocks `[live]`.
    """

    gate_up: Tensor | np.ndarray
    down: Tensor | np.ndarray
    hidden_grad: Tensor | np.ndarray
    input_grad: Tensor | np.ndarray
    gate_up_groups: Tensor | np.ndarray
    down_groups: Tensor | np.ndarray
    live: Tensor | np.ndarray


def index_lists_on_device(
    gate_up: Sequence[Index], down: Index, columns: int, shared_mask: bool = False, members: Members = (2, 2)
) -> IndexLists:
    """The lists of one MLP as tensors.

    They are built on the CPU, because that takes many small steps, and copied in one transfer.

    Args:
        gate_up: `row_offsets`, `col_indices` of the gate and the up projection, or of the up projection alone.
        down: `row_offsets`, `col_indices` of the down projection. Its columns are the rows of `gate_up`.
        columns: Block columns of the `gate_up` matrices.
        shared_mask: Whether gate and up share one mask. Each row list of `gate_up` then holds it once.
        members: Blocks of a group for `gate_up` and for `down`: 1, 2 or 4. Or a function that gives both for the
            numbers of live blocks of `gate_up` and `down` (`partial(heuristics.group_members, side)`).

    Returns:
        Tensors on the device of `down`.
    """
    *ours, last = [tuple(tensor.cpu().numpy() for tensor in index) for index in (*gate_up, down)]
    (arrays,) = index_arrays([(ours, last)], columns, shared_mask, members)
    return IndexLists(*batched_copy(arrays, down[0].device))


def index_arrays(mlps: Sequence[CpuMlp], columns: int, shared_mask: bool, members: Members) -> list[IndexLists]:
    """The lists of several MLPs at once, as NumPy arrays.

    The number of steps does not grow with the number of MLPs.

    Args:
        mlps: `gate_up` and `down` of each MLP. All have the same numbers of matrices, block rows and block columns.
        columns: As in `index_lists_on_device`.
        shared_mask: As there.
        members: As there.
    """
    gate_up, down = _joined(mlps)
    rows, outs = (offsets.size - 1 for offsets in (mlps[0][0][0][0], mlps[0][1][0]))
    live = np.zeros((len(mlps), rows), dtype=bool)
    live[down.mlp, down.column] = True
    if len(mlps[0][0]) == 2:
        for n in range(2):
            live &= np.diff(np.stack([matrices[n][0] for matrices, _ in mlps])) > 0
    number, counts = live.cumsum(1) - 1, live.sum(1)
    of, labels = np.nonzero(live)

    kept, down_kept = live[gate_up.mlp, gate_up.row], live[down.mlp, down.column]
    once = kept & (gate_up.second == 0) if shared_mask else kept
    hidden, down_hidden = number[gate_up.mlp, gate_up.row], number[down.mlp, down.column]
    own = hidden + gate_up.second * counts[gate_up.mlp]
    firsts = np.array([matrices[0][1].size for matrices, _ in mlps])
    slot = gate_up.position + gate_up.second * firsts[gate_up.mlp]
    if callable(members):
        pairs = zip(_sums(kept, gate_up.mlp, len(mlps)), _sums(down_kept, down.mlp, len(mlps)), strict=True)
        members = [members(int(ours), int(last)) for ours, last in pairs]
    else:
        members = [members] * len(mlps)
    all_outs, all_columns = np.full(len(mlps), outs), np.full(len(mlps), columns)
    gate_up_members, down_members = np.array(members).T
    parts = zip(
        _row_lists(gate_up._replace(row=hidden), once, counts, labels),
        _row_lists(down._replace(column=down_hidden), down_kept, all_outs),
        _row_lists(down._replace(row=down_hidden, column=down.row), down_kept, counts),
        _row_lists(gate_up._replace(row=gate_up.column, column=own), kept, all_columns),
        _groups(gate_up._replace(row=gate_up.column, column=own, position=slot), kept, columns, gate_up_members),
        _groups(down._replace(column=down_hidden), down_kept, outs, down_members),
        _split(labels.astype(np.int32), of, len(mlps)),
        strict=True,
    )
    return [IndexLists(*lists) for lists in parts]


def complete_arrays(mlps: Sequence[CpuMlp], shared_mask: bool = False) -> list[tuple[np.ndarray, np.ndarray]]:
    """The row lists `gate_up` and `hidden_grad` of several MLPs with all hidden blocks, also the dead ones.

    `autograd.dense_gradients` reads them.

    Args:
        mlps: As in `index_arrays`.
        shared_mask: As there.
    """
    gate_up, down = _joined(mlps)
    rows = np.full(len(mlps), mlps[0][0][0][0].size - 1)
    once = gate_up.second == 0 if shared_mask else slice(None)
    transposed = down._replace(row=down.column, column=down.row)
    return list(zip(_row_lists(gate_up, once, rows), _row_lists(transposed, slice(None), rows), strict=True))


class _Blocks(NamedTuple):
    """The blocks of matrices of several MLPs, one entry for each block, int64.

    Attributes:
        mlp: Number of the MLP.
        row: Block row.
        column: Block column.
        position: Position in the values of its matrix.
        second: 1 for the up projection of a gated MLP, else 0.
    """

    mlp: np.ndarray
    row: np.ndarray
    column: np.ndarray
    position: np.ndarray
    second: np.ndarray

    def take(self, which: np.ndarray | slice) -> _Blocks:
        return _Blocks(*(array[which] for array in self))


def _joined(mlps: Sequence[CpuMlp]) -> tuple[_Blocks, _Blocks]:
    """The blocks of all gate and up projections, and of all down projections."""
    matrices = [(mlp, second, index) for mlp, (gate_up, _) in enumerate(mlps) for second, index in enumerate(gate_up)]
    return _blocks(matrices), _blocks([(mlp, 0, down) for mlp, (_, down) in enumerate(mlps)])


def _blocks(matrices: Sequence[tuple[int, int, CpuIndex]]) -> _Blocks:
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
    """The entries of each MLP; they are next to each other."""
    return np.split(array, np.bincount(of, minlength=count).cumsum()[:-1])


def _row_lists(
    blocks: _Blocks, kept: np.ndarray | slice, owners: np.ndarray, labels: np.ndarray | None = None
) -> list[np.ndarray]:
    """The row lists of each MLP.

    Args:
        blocks: `row` is the number of the list that a block belongs to.
        kept: Which blocks to take.
        owners: How many lists each MLP has.
        labels: Labels of the lists of all MLPs; their numbers if left out.
    """
    blocks = blocks.take(kept)
    first = owners.cumsum() - owners
    of = np.repeat(np.arange(owners.size), owners)
    owner = blocks.row + first[blocks.mlp]
    order = np.argsort(owner * 2 + blocks.second, kind="stable")
    lengths = np.bincount(owner, minlength=of.size)
    start = lengths.cumsum() - lengths
    # One entry more than the longest list, because the kernels load one entry ahead.
    longest = np.array([part.max() if part.size else 0 for part in np.split(lengths, first[1:])])
    widths = -(-(HEADER + 2 * (longest + 1)) // ALIGNMENT) * ALIGNMENT
    lists = np.zeros((of.size, widths.max()), dtype=np.int32)
    lists[:, 0] = np.arange(of.size) - first[of]
    lists[:, 1] = np.bincount(owner[blocks.second == 0], minlength=of.size)
    lists[:, 2] = lengths
    lists[:, 3] = lists[:, 0] if labels is None else labels
    owner = owner[order]
    at = HEADER + 2 * (np.arange(owner.size) - start[owner])
    lists[owner, at] = blocks.position[order]
    lists[owner, at + 1] = blocks.column[order]
    lists = lists[np.lexsort((-lengths, of))]
    return [part[:, :width] for part, width in zip(np.split(lists, first[1:]), widths, strict=True)]


def _groups(blocks: _Blocks, kept: np.ndarray, sides: int, members: np.ndarray) -> list[np.ndarray]:
    """The block groups of each MLP.

    Args:
        blocks: `row` is the operand block that a group shares, `column` the block's own, `position` its slot.
        kept: Which blocks have a gradient that is not known to be zero.
        sides: How many values `row` can have in an MLP.
        members: Blocks of a group, for each MLP.
    """
    dead, blocks = blocks.take(~kept), blocks.take(kept)
    shared = blocks.row + sides * blocks.mlp
    order = np.argsort(shared, kind="stable")
    blocks, shared = blocks.take(order), shared[order]
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
    # A place without a block reads what the first member reads, so it adds no traffic. Its result is not stored.
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
