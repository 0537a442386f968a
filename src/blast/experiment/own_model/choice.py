"""Which matrices of a model are pruned, and in which blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from blast.block_sparse.blocks import BlockShape, block_grid
from blast.errors import BlastError
from blast.model.discovery import MLP, match_matrices

if TYPE_CHECKING:
    from torch import nn

    from blast.model.target import Target

# Sides of square blocks that are tried, the best for the kernels first.
SIDES = (64, 32, 16, 8)


def chosen_matrices(model: nn.Module, name: str, dense_layers: Sequence[int] = ()) -> list[Target]:
    """The matrices of the MLPs, without those of layers that stay dense.

    Args:
        model: A dense model.
        name: Its name, for errors.
        dense_layers: Numbers of layers, counted from 0.

    Raises:
        BlastError: if the model has no MLP that can be pruned, no such layer, or no layer is left.
    """
    try:
        found = match_matrices(model, MLP)
    except BlastError as error:
        raise BlastError(f"{name} has no MLP that can be pruned ({str(error).partition(';')[0]}).") from error
    layers = {target.layer for target in found if target.layer is not None}
    if unknown := sorted(set(dense_layers) - layers):
        raise BlastError(
            f"{name} has no layer {unknown[0]} to leave dense; its layers are {min(layers)} to {max(layers)}."
            if layers
            else f"{name} has no numbered layers; leave --dense-layers out."
        )
    chosen = [target for target in found if target.layer not in set(dense_layers)]
    if not chosen:
        raise BlastError(f"--dense-layers leaves no layer of {name} to prune; name fewer layers.")
    return chosen


def chosen_block(matrices: Sequence[Target], side: int | None) -> BlockShape:
    """The block: the given one, else the largest of `SIDES` that divides every matrix.

    Raises:
        BlastError: if it does not divide a matrix, or none does.
    """
    for tried in SIDES if side is None else (side,):
        block = BlockShape(tried, tried)
        if all(not rows % tried and not cols % tried for rows, cols in (target.shape for target in matrices)):
            return block
    target = matrices[0]
    if side is not None:
        for target in matrices:
            block_grid(target.shape, BlockShape(side, side), target.name)
    raise BlastError(
        f"no square block of {', '.join(map(str, SIDES))} divides '{target.name}' of {target.shape[0]} x "
        f"{target.shape[1]} and all other matrices; give a --block that does."
    )
