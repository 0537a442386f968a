"""Choosing exactly as many blocks as a budget allows, within one matrix or over many that compete.

Ties go to the earlier matrix, then to the earlier block in row-major order, on every device. The choice itself is made
on the host: it takes many steps on few numbers, each of which would cost a GPU a launch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from blast.block_sparse.blocks import keep_count

EXCLUDED = float("-inf")


def block_budget(sizes: Sequence[int], costs: Sequence[int], sparsity: float) -> int:
    """How many blocks of weight the masks that compete may keep together.

    Args:
        sizes: Blocks of each mask.
        costs: Matrices that each mask serves (2 for a mask shared by gate and up).
        sparsity: Share of empty blocks aimed at.

    Returns:
        Blocks, counted once a matrix; at least one for each matrix.
    """
    if len(set(costs)) == 1:
        return costs[0] * max(keep_count(sum(sizes), sparsity), len(sizes))
    total = sum(size * cost for size, cost in zip(sizes, costs, strict=True))
    return max(keep_count(total, sparsity), sum(costs))


def top_blocks(
    scores: Sequence[Tensor], budget: int, costs: Sequence[int] | None = None, one_each: bool = True
) -> list[Tensor]:
    """The blocks with the highest scores that a budget pays for.

    Args:
        scores: For each mask, scores `[rows, cols]`; `EXCLUDED` (minus infinity) is never chosen.
        budget: Blocks of weight to choose, over all masks together.
        costs: Blocks of weight that one block of each mask stands for; 1 each when left out.
        one_each: Whether each mask first gets its best block, so that no matrix is emptied.

    Returns:
        Masks, bool, of the scores' shapes. Their cost is exactly `budget` unless too few blocks can be chosen, or all
        masks cost 2 and the budget is odd.
    """
    masks = best_blocks([host_array(score) for score in scores], budget, costs, one_each)
    return [torch.from_numpy(mask).to(score.device) for mask, score in zip(masks, scores, strict=True)]


def best_blocks(
    scores: Sequence[np.ndarray], budget: int, costs: Sequence[int] | None = None, one_each: bool = True
) -> list[np.ndarray]:
    """`top_blocks` from arrays of the host, as arrays of the host."""
    costs = costs or [1] * len(scores)
    if len(scores) == 1:
        return [_best_of_one(scores[0], budget // costs[0])]
    sizes = [score.size for score in scores]
    flat = np.concatenate([score.reshape(-1) for score in scores])
    # What is no number is not chosen either.
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
        # Where blocks differ in cost, the first that does not fit leaves room for a cheaper one after it.
        fits = np.flatnonzero(~taken & (cost[order] <= left))
        if fits.size == 0:
            break
        taken[fits[0]] = True
        left -= int(cost[order[fits[0]]])
    chosen = np.zeros(flat.size, dtype=bool)
    chosen[order[taken]] = True
    return [part.reshape(score.shape) for part, score in zip(np.split(chosen, ends[:-1]), scores, strict=True)]


def _best_of_one(scores: np.ndarray, count: int) -> np.ndarray:
    """The mask of the `count` best blocks of one matrix: the same as first of a sorted list, without sorting."""
    able = scores > EXCLUDED
    candidates = int(np.count_nonzero(able))
    if count >= candidates:
        return able
    if count <= 0:
        return np.zeros_like(able)
    flat = np.where(able, scores, EXCLUDED).reshape(-1)
    least = np.partition(flat, flat.size - count)[flat.size - count]
    chosen = flat > least
    ties = np.flatnonzero(flat == least)
    chosen[ties[: count - int(np.count_nonzero(chosen))]] = True
    return chosen.reshape(scores.shape)


def host_array(tensor: Tensor) -> np.ndarray:
    """A tensor as an array of the host: its own memory where it is there already."""
    tensor = tensor.detach() if tensor.requires_grad else tensor
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy()


def live_cost(masks: Sequence[Tensor], costs: Sequence[int]) -> int:
    """Live blocks of weight under some masks."""
    return sum(int(np.count_nonzero(host_array(mask))) * cost for mask, cost in zip(masks, costs, strict=True))
