"""Keep scores that take the hidden block of a block into account: `SparsifyConfig.joint_hidden`.

A hidden block is what the matrices of an MLP have in the same hidden units: a row of blocks in gate and in up, and a
column of blocks in down. A block of down is useless where all blocks of up are dead, and the other way round.

The score of a block is multiplied by a factor: the geometric mean of the norms that the *other* matrices of its MLP
have in its hidden block. So a useless block scores zero and goes first.

- A factor, not a strict choice of hidden blocks, which needs a number of hidden blocks beside the sparsity. The factor
  alone favours few, full hidden blocks: in runs of 300 steps of the nano models the MLPs became as narrow as the budget
  allows. Compare it with a small dense model.
- The other matrices, not all of them: its own norm is in the score already.
- Grow scores have no factor. The dense gradient of a block of down is a product with its hidden units, and that of a
  block of up passes through down. So, but for biases, both are zero already where the other side is dead.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from blast.block_sparse.blocks import BlockShape
from blast.errors import BlastError
from blast.model.target import Target
from blast.sparsity.selection import FloatArray, as_numpy

# Roles of matrices whose rows (whose columns) are the hidden units.
ROWS, COLUMNS = ("gate", "up", "fc1"), ("down", "fc2")
OFF = "or set joint_hidden to false"


def check_hidden_units(pruned: Sequence[Target]) -> None:
    """Checks that the hidden units of every matrix are known, and that another matrix has them too.

    Raises:
        BlastError: for a matrix outside an MLP, without another matrix of its MLP, or with gate and up together.
    """
    mlps: dict[object, list[Target]] = {}
    for target in pruned:
        if target.role not in ROWS + COLUMNS:
            raise BlastError(
                f"joint_hidden joins the matrices of an MLP, and '{target.name}' is in none; "
                f"leave it out of the targets, {OFF}."
            )
        mlps.setdefault(_mlp_of(target), []).append(target)
    for members in mlps.values():
        first = members[0]
        if len({target.role in ROWS for target in members}) < 2:
            raise BlastError(
                f"joint_hidden joins '{first.name}' with the other matrices of its MLP, which are no targets; "
                f"add them, {OFF}."
            )
        if len({_hidden_units(target) for target in members}) > 1:
            raise BlastError(
                f"joint_hidden cannot tell the hidden units of '{first.name}', which holds gate and up together; "
                f"leave it out of the targets, {OFF}."
            )


def joint_scores(members: Sequence[Sequence[Target]], block: BlockShape, scores: Sequence[Tensor]) -> list[Tensor]:
    """The scores of blocks, each multiplied by what the rest of its hidden block is worth.

    Args:
        members: The matrices under each mask, as `check_hidden_units` allows them.
        block: Shape of a block.
        scores: For each mask `[rows, cols]`, float32 on the CPU, zero for dead blocks.

    Returns:
        Scores of the same shapes. The factors of the blocks of a mask have a mean of 1 where they are not zero, so that
        masks stay comparable.
    """
    norms: dict[object, dict[tuple[int, bool], FloatArray]] = {}
    for place, targets in enumerate(members):
        for target in targets:
            rows = target.role in ROWS
            of_mlp = norms.setdefault(_mlp_of(target), {})
            if (place, rows) not in of_mlp:
                of_mlp[place, rows] = _norms(as_numpy(scores[place]), rows, block)
    joint = []
    for place, (targets, score) in enumerate(zip(members, scores, strict=True)):
        # A matrix in several MLPs serves all of them.
        keys = list(dict.fromkeys((_mlp_of(target), target.role in ROWS) for target in targets))
        factor = np.mean([_factor(norms[mlp], place, rows, block) for mlp, rows in keys], axis=0)
        joint.append(score * torch.from_numpy(factor[:, None] if keys[0][1] else factor))
    return joint


def _mlp_of(target: Target) -> object:
    return target.mlp, None if target.expert is None else target.expert.number


def _hidden_units(target: Target) -> int:
    return target.shape[0 if target.role in ROWS else 1]


def _norms(score: FloatArray, rows: bool, block: BlockShape) -> FloatArray:
    """The norm of a matrix in each of its hidden blocks, per root of a hidden unit."""
    side = block.rows if rows else block.cols
    return np.sqrt(np.square(score).sum(axis=1 if rows else 0) / side)


def _factor(norms: dict[tuple[int, bool], FloatArray], place: int, rows: bool, block: BlockShape) -> FloatArray:
    """The factor of each hidden block of a mask, float32."""
    side = block.rows if rows else block.cols
    others = [
        _resampled(norm, block.rows if of_rows else block.cols, side)
        for (other, of_rows), norm in norms.items()
        if other != place
    ]
    factor = np.prod(others, axis=0) ** (1 / len(others))
    live = factor > 0
    return np.asarray(factor / factor[live].mean() if live.any() else factor, dtype=np.float32)


def _resampled(norm: FloatArray, side: int, wanted: int) -> FloatArray:
    """Norms by hidden blocks of one side as root mean squares over hidden blocks of another side."""
    if side == wanted:
        return norm
    return np.sqrt(np.square(norm).repeat(side).reshape(-1, wanted).mean(axis=1))
