"""The part of one matrix, dense or block-sparse, that holds some of its output and input features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from blast.block_sparse.conv1d import is_conv1d
from blast.block_sparse.csr import BlockIndex
from blast.errors import BlastError
from blast.model.eligibility import shape_of
from blast.tensor_parallel.parts import Part


class Cut(NamedTuple):
    """Which features of a matrix one process keeps.

    Attributes:
        name: The name of its module.
        rows: Its output features, ascending, int64; None for all.
        cols: Its input features; None for all.
        bias: Whether this process adds the bias, where the outputs of all processes are added up.
    """

    name: str
    rows: Tensor | None = None
    cols: Tensor | None = None
    bias: bool = True


def shrink(module: nn.Module, cut: Cut) -> None:
    """Gives a linear layer on the meta device, or a Conv1D, the sizes of a part of it, in place."""
    out, into = shape_of(module)
    out = out if cut.rows is None else cut.rows.numel()
    into = into if cut.cols is None else cut.cols.numel()
    names = ("nf", "nx") if is_conv1d(module) else ("out_features", "in_features")
    for name, side in zip(names, (out, into), strict=True):
        setattr(module, name, side)
    sizes = {"weight": (into, out) if is_conv1d(module) else (out, into), "bias": (out,)}
    for name, size in sizes.items():
        old = module._parameters[name]
        if old is not None:
            module._parameters[name] = nn.Parameter(old.new_empty(size), requires_grad=old.requires_grad)


def dense_parts(cut: Cut, transposed: bool) -> dict[str, Part]:
    """What is kept of the tensors of a dense matrix, by their names in a checkpoint.

    Args:
        cut: The features.
        transposed: Whether the weight is stored as `[in, out]` (Conv1D).
    """
    sides = (cut.cols, cut.rows) if transposed else (cut.rows, cut.cols)
    return {f"{cut.name}.weight": Part(*sides), f"{cut.name}.bias": _bias(cut)}


def sparse_parts(cut: Cut, index: BlockIndex, facts: Mapping[str, Any]) -> tuple[dict[str, Part], dict[str, Any]]:
    """What is kept of the tensors of a block-sparse matrix.

    Args:
        cut: The features; whole blocks.
        index: The whole index.
        facts: The entry of the matrix in the manifest.

    Returns:
        The parts by their names in a checkpoint, and the entry of the manifest for the part.

    Raises:
        BlastError: if the features cut through blocks.
    """
    (out, into), block = index.shape, index.block
    rows = _whole_blocks(cut.name, cut.rows, out, block.rows)
    cols = _whole_blocks(cut.name, cut.cols, into, block.cols)
    offsets, columns = (np.asarray(array) for array in index.cpu_index)
    row_of = np.repeat(np.arange(len(rows)), np.diff(offsets))
    kept = np.flatnonzero(rows[row_of] & cols[columns])
    counts = np.bincount(row_of[kept], minlength=len(rows))[rows]
    new_offsets = np.concatenate([[0], counts.cumsum()]).astype(np.int32)
    new_columns = (np.cumsum(cols) - 1)[columns[kept]].astype(np.int32)
    parts = {
        f"{cut.name}.values": Part(torch.from_numpy(kept)),
        f"{cut.name}.row_offsets": Part(value=torch.from_numpy(new_offsets)),
        f"{cut.name}.col_indices": Part(value=torch.from_numpy(new_columns)),
        f"{cut.name}.bias": _bias(cut),
    }
    grid = int(rows.sum()), int(cols.sum())
    shape = [grid[0] * block.rows, grid[1] * block.cols]
    return parts, {**facts, "shape": shape, "blocks": grid[0] * grid[1], "live": len(kept)}


def _bias(cut: Cut) -> Part:
    return Part(cut.rows, zero=not cut.bias)


def _whole_blocks(name: str, features: Tensor | None, count: int, side: int) -> np.ndarray:
    """Which blocks of one dimension are kept, bool."""
    if features is None:
        return np.ones(count // side, dtype=bool)
    kept = np.zeros(count, dtype=bool)
    kept[features.numpy()] = True
    counts = kept.reshape(-1, side).sum(axis=1)
    if ((counts > 0) & (counts < side)).any():
        raise BlastError(
            f"'{name}' has blocks of {side} features, which the parts of the processes would cut through; start fewer "
            "processes."
        )
    return counts == side
