"""Deals the hidden features of an MLP out to processes, in whole blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from blast.block_sparse.csr import BlockIndex
from blast.errors import BlastError
from blast.model.eligibility import shape_of
from blast.model.target import Mlp
from blast.tensor_parallel.balance import balanced
from blast.tensor_parallel.matrices import Cut

# Hidden features of a dense MLP are dealt out in runs of so many, if that divides them.
DENSE_RUN = 64


def cut_mlp(mlp: Mlp, indices: Mapping[str, BlockIndex], rank: int, size: int) -> list[Cut]:
    """What one process keeps of the matrices of an MLP; the outputs have to be added up.

    The hidden features can be permuted, so each process may get any of them. The parts of all processes have about as
    many live weights; see `balance.balanced`.

    Args:
        mlp: The MLP of a dense model.
        indices: The index of each matrix that is block-sparse in the checkpoint.
        rank: The number of the process.
        size: The number of processes.

    Raises:
        BlastError: if there are more processes than hidden blocks.
    """
    kept = hidden_features(mlp, indices, size)[rank]
    *wide, down = mlp.targets
    return [*(Cut(each.name, rows=kept) for each in wide), Cut(down.name, cols=kept, bias=rank == 0)]


def hidden_features(mlp: Mlp, indices: Mapping[str, BlockIndex], size: int) -> list[Tensor]:
    """The hidden features of each process, ascending, int64."""
    *wide, down = mlp.targets
    hidden, _ = shape_of(mlp.up.module)
    sides = [indices[each.name].block.rows for each in wide if each.name in indices]
    sides += [indices[down.name].block.cols] if down.name in indices else []
    unit = math.lcm(*sides) if sides else math.gcd(hidden, DENSE_RUN)
    units = hidden // unit
    if units < size:
        raise BlastError(
            f"'{mlp.name}' has {units} hidden blocks of {unit} and cannot be split over {size} processes; "
            f"start at most {units}."
        )
    if sides:
        dealt = balanced(_work(mlp, indices, hidden, units), size)
    else:
        dealt = [each.tolist() for each in np.array_split(np.arange(units), size)]
    features = torch.arange(hidden).view(units, unit)
    return [features[torch.tensor(numbers)].flatten() for numbers in dealt]


def _work(mlp: Mlp, indices: Mapping[str, BlockIndex], hidden: int, units: int) -> list[int]:
    """The live weights of each unit in all matrices."""
    work = np.zeros(units, dtype=np.int64)
    *wide, down = mlp.targets
    for each in (*wide, down):
        index = indices.get(each.name)
        if index is None:
            work += each.shape[0] * each.shape[1] // units
            continue
        offsets, columns = index.cpu_index
        cols = index.grid[1]
        counts = np.bincount(columns, minlength=cols) if each is down else np.diff(offsets)
        work += counts.reshape(units, -1).sum(1) * index.block.rows * index.block.cols
    return [int(each) for each in work]
