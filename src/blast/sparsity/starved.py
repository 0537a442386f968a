"""Warns of matrices that lose nearly all blocks to others with larger weights, when they compete for one budget."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from blast.sparsity.config import SparsifyConfig
from blast.sparsity.mask_groups import MaskGroup, pruning_scopes
from blast.sparsity.selection import as_numpy

# A matrix with less than this part of its share of live blocks is starved.
STARVED = 0.1


def starved_matrices(
    mask_groups: Sequence[MaskGroup], masks: Sequence[Tensor], config: SparsifyConfig, sparsity: float
) -> list[tuple[MaskGroup, int]]:
    """The mask groups that have less than a tenth of the live blocks that the sparsity leaves on average.

    Args:
        mask_groups: All mask groups of a model.
        masks: Their masks, bool `[rows, cols]` on the CPU.
        config: `ranking` is used: a matrix that competes with no other is not starved.
        sparsity: The target of these masks, a share of empty blocks.

    Returns:
        Those mask groups with their live blocks.
    """
    starved = []
    for scope in pruning_scopes(mask_groups, config.ranking):
        for group in scope if len(scope) > 1 else []:
            live = int(np.count_nonzero(as_numpy(masks[group.index])))
            if live < STARVED * (1 - sparsity) * group.blocks:
                starved.append((group, live))
    return starved


def warn_of_starved(
    mask_groups: Sequence[MaskGroup], masks: Sequence[Tensor], config: SparsifyConfig, sparsity: float
) -> bool:
    """Warns of starved matrices, see `starved_matrices`; returns whether there are any."""
    starved = starved_matrices(mask_groups, masks, config, sparsity)
    if not starved:
        return False
    group, live = min(starved, key=lambda found: found[1] / found[0].blocks)
    more = len(starved) - 1
    others = (
        f" (and {more} other {'matrix' if more == 1 else 'matrices'} less than a tenth of their share)" if more else ""
    )
    instead = "" if config.keep_score == "lamp" else "the keep score 'lamp' or "
    warnings.warn(
        f"the ranking '{config.ranking}' leaves {group.name} {live} of {group.blocks} blocks at a sparsity of "
        f"{sparsity:.3g}{others}; blocks of matrices of different scales do not compare: take {instead}the ranking "
        "'matrix'.",
        stacklevel=3,
    )
    return True
