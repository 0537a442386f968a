"""What blocks are ranked by: the Frobenius norm of a weight or of a gradient, or a reproducible random order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from blast.block_sparse.blocks import BlockShape, block_squares, tiles
from blast.distributed import mean_over_ranks_
from blast.errors import BlastError
from blast.sparsity.config import SparsifyConfig
from blast.sparsity.mask_groups import Unit
from blast.sparsity.selection import host_array


def block_norms(weight: Tensor, block: BlockShape, name: str = "the weight") -> Tensor:
    """Frobenius norm of each block.

    Args:
        weight: `[out, in]`, any floating dtype and strides.
        block: Shape of a block.
        name: What to call the matrix in an error.

    Returns:
        Norms `[out / b_out, in / b_in]`, float32.

    Raises:
        BlastError: if the block does not divide the weight.
    """
    return block_squares(tiles(weight, block, name)).sqrt()


def joint_norms(weights: Sequence[Tensor], block: BlockShape, name: str = "the weight") -> Tensor:
    """Norm of each block over several matrices that share one mask: the root of their mean square.

    The mean, not the sum, so that a shared block and a single one compare fairly in a ranking over many matrices.

    Args:
        weights: One or more `[out, in]` of equal shape.
        block: Shape of a block.
        name: What to call the matrices in an error.

    Returns:
        Norms `[out / b_out, in / b_in]`, float32.
    """
    return mean_norms([block_norms(weight, block, name) for weight in weights])


def mean_norms(norms: Sequence[Tensor]) -> Tensor:
    """Root of the mean square of the norms of several matrices `[rows, cols]`; those of a single one as they are."""
    return norms[0] if len(norms) == 1 else torch.stack([norm.square() for norm in norms]).mean(0).sqrt()


def random_scores(grid: tuple[int, int], *seeds: int | str, device: torch.device | str = "cpu") -> Tensor:
    """Random scores that depend on the seeds alone, on every device and whatever was drawn before.

    Args:
        grid: Blocks each way.
        *seeds: What the scores depend on: seed, purpose, step, index of the matrix.
        device: Where to put them.

    Returns:
        Uniform scores in [0, 1) `[rows, cols]`, float32.
    """
    digest = hashlib.sha256("/".join(map(str, seeds)).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(grid, generator=generator).to(device)


def check_finite(norms: np.ndarray, what: str, step: int) -> None:
    """Refuses norms of which one is NaN or infinite: a ranking by them would be arbitrary.

    Raises:
        BlastError: with the number of such blocks.
    """
    if not np.isfinite(norms).all():
        bad = int(np.count_nonzero(~np.isfinite(norms)))
        raise BlastError(
            f"at step {step} {what} is NaN or infinite in {bad} of {norms.size} blocks, so no mask can be chosen; "
            "the training has diverged: lower the learning rate, or look for the first NaN in the loss."
        )


class UnitScores(NamedTuple):
    """Scores of each unit, `[rows, cols]` float32 on the host.

    Attributes:
        keep: To keep blocks by; a random order is drawn once, so that such masks are nested.
        grow: To grow blocks by; a random order is drawn anew in each step. None if not asked for.
    """

    keep: list[Tensor]
    grow: list[Tensor] | None


@torch.no_grad()
def unit_scores(
    units: Sequence[Unit], live: Sequence[Tensor], config: SparsifyConfig, step: int, grow: bool = False
) -> UnitScores:
    """Scores of all units in one step; of several processes each gets the same.

    Args:
        units: All units of the model.
        live: Their masks, bool `[rows, cols]` on the host.
        config: Of it: `keep_score`, `grow_score`, `seed`.
        step: For random scores and error messages.
        grow: Whether scores to grow by are wanted.

    Raises:
        BlastError: if a weight or gradient is not finite, or there is no gradient.
    """
    by_weight, by_gradient = config.keep_score != "random", grow and config.grow_score != "random"
    squares = [unit.weight_squares() for unit in units] if by_weight else []
    squares += [unit.gradient_squares(step) for unit in units] if by_gradient else []
    norms = iter(_fetched_norms(squares))
    if by_weight:
        keep = [_checked(next(norms), unit, mask, "weight", step) for unit, mask in zip(units, live, strict=True)]
    else:
        keep = [random_scores(unit.grid, config.seed, "keep", unit.index) for unit in units]
    if not grow:
        return UnitScores(keep, None)
    if by_gradient:
        gain = [_checked(next(norms), unit, mask, "gradient", step) for unit, mask in zip(units, live, strict=True)]
    else:
        gain = [random_scores(unit.grid, config.seed, "grow", step, unit.index) for unit in units]
    return UnitScores(keep, gain)


def _fetched_norms(squares: Sequence[Sequence[Tensor]]) -> list[np.ndarray]:
    """Joint norms `[blocks]` of the matrices under one mask, from the sums of squares of each; one copy a device."""
    norms: list[np.ndarray] = [np.empty(0)] * len(squares)
    for device in dict.fromkeys(members[0].device for members in squares):
        there = [place for place, members in enumerate(squares) if members[0].device == device]
        order, parts = [], []
        for count in sorted({len(squares[place]) for place in there}):
            same = [place for place in there if len(squares[place]) == count]
            each = [torch.cat([squares[place][n].flatten() for place in same]).sqrt_() for n in range(count)]
            order += same
            parts.append(mean_norms(each))
        flat = host_array(mean_over_ranks_(parts[0] if len(parts) == 1 else torch.cat(parts)))
        ends = np.cumsum([squares[place][0].numel() for place in order])
        for place, part in zip(order, np.split(flat, ends[:-1]), strict=True):
            norms[place] = part
    return norms


def _checked(norms: np.ndarray, unit: Unit, live: Tensor, what: str, step: int) -> Tensor:
    """The scores of a unit from its norms, which in the sparse state are those of live blocks alone."""
    if norms.size != unit.blocks:
        whole = np.zeros(unit.grid, dtype=np.float32)
        whole[live.numpy()] = norms
        norms = whole
    check_finite(norms, f"the {what} of {unit.name}", step)
    return torch.from_numpy(norms.reshape(unit.grid))
