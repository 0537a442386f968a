"""What all masks of a model are chosen by: norms made where the matrices are, and brought to the host in one copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from blast.sparsity.config import SparsifyConfig
from blast.sparsity.mask import host_array
from blast.sparsity.ranks import mean_over_ranks_
from blast.sparsity.scores import check_finite, mean_norms, random_scores
from blast.sparsity.units import Unit


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
