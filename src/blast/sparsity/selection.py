"""Selects exactly as many blocks as a budget allows, within one mask or over all masks of a pruning scope.

Ties go to the earlier matrix, then to the earlier block in row-major order, on every device. Selection runs on the CPU:
it takes many small operations, and on a GPU each would cost a launch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from blast.block_sparse.blocks import keep_count

FloatArray = npt.NDArray[np.floating]
BoolArray = npt.NDArray[np.bool_]

# The score of a block that must not be selected.
EXCLUDED = float("-inf")


def block_budget(sizes: Sequence[int], costs: Sequence[int], sparsity: float) -> int:
    """The number of weight blocks that the masks of a pruning scope may keep together.

    Args:
        sizes: Blocks of each mask.
        costs: Matrices under each mask (2 for a mask shared by gate and up).
        sparsity: Target share of empty blocks.

    Returns:
        Weight blocks, counted once for each matrix; at least one for each matrix.
    """
    if len(set(costs)) == 1:
        return costs[0] * max(keep_count(sum(sizes), sparsity), len(sizes))
    total = sum(size * cost for size, cost in zip(sizes, costs, strict=True))
    return max(keep_count(total, sparsity), sum(costs))


def select_blocks(
    scores: Sequence[FloatArray], budget: int, costs: Sequence[int] | None = None, one_each: bool = True
) -> list[BoolArray]:
    """The blocks with the highest scores within a budget.

    Args:
        scores: For each mask the scores `[rows, cols]`. `EXCLUDED` (minus infinity) and NaN are never selected.
        budget: Weight blocks to select, over all masks together.
        costs: Weight blocks that one block of each mask stands for; 1 each if None.
        one_each: Whether each mask first gets its best block, so that no matrix becomes empty.

    Returns:
        Masks of the same shapes. Their cost is exactly `budget`, unless too few blocks can be selected, or all masks
        cost 2 and the budget is odd.
    """
    costs = costs or [1] * len(scores)
    if len(scores) == 1:
        return [_select_of_one(scores[0], budget // costs[0])]
    sizes = [score.size for score in scores]
    flat = np.concatenate([score.reshape(-1) for score in scores])
    # NaN compares false, so it is excluded too.
    flat = np.where(flat > EXCLUDED, flat, EXCLUDED)
    cost = np.repeat(costs, sizes)
    ends = np.cumsum(sizes)
    order = np.argsort(-flat, kind="stable")
    if one_each:
        first = np.zeros(flat.size, dtype=bool)
        first[[end - size + flat[end - size : end].argmax() for end, size in zip(ends, sizes, strict=True)]] = True
        order = np.concatenate([order[first[order]], order[~first[order]]])
    order = order[flat[order] > EXCLUDED]
    spent = cost[order].cumsum()
    taken = spent <= budget
    left = budget - (int(spent[taken][-1]) if taken.any() else 0)
    while left > 0:
        # Costs differ: after the first block that is too expensive, a cheaper one may still fit.
        fits = np.flatnonzero(~taken & (cost[order] <= left))
        if fits.size == 0:
            break
        taken[fits[0]] = True
        left -= int(cost[order[fits[0]]])
    selected = np.zeros(flat.size, dtype=bool)
    selected[order[taken]] = True
    return [part.reshape(score.shape) for part, score in zip(np.split(selected, ends[:-1]), scores, strict=True)]


def _select_of_one(scores: FloatArray, count: int) -> BoolArray:
    """The mask of the `count` best blocks of one matrix: the result of a stable sort, without sorting."""
    able: BoolArray = scores > EXCLUDED
    candidates = int(np.count_nonzero(able))
    if count >= candidates:
        return able
    if count <= 0:
        return np.zeros_like(able)
    flat = np.where(able, scores, EXCLUDED).reshape(-1)
    least = np.partition(flat, flat.size - count)[flat.size - count]
    selected: BoolArray = flat > least
    ties = np.flatnonzero(flat == least)
    selected[ties[: count - int(np.count_nonzero(selected))]] = True
    return selected.reshape(scores.shape)


def as_numpy(tensor: Tensor) -> npt.NDArray[Any]:
    """A tensor as an array; a CPU tensor is not copied. bfloat16 becomes float32, because numpy has no bfloat16."""
    tensor = tensor.detach() if tensor.requires_grad else tensor
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy()


def live_cost(masks: Sequence[Tensor], costs: Sequence[int]) -> int:
    """Live weight blocks under some masks, counted once for each matrix."""
    return sum(int(np.count_nonzero(as_numpy(mask))) * cost for mask, cost in zip(masks, costs, strict=True))
