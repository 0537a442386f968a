"""Choosing exactly as many blocks as a budget allows, within one matrix or over many that compete.

Ties go to the earlier matrix, then to the earlier block in row-major order, on every device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blast.sparsity.blocks import keep_count

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
    costs = costs or [1] * len(scores)
    sizes = [score.numel() for score in scores]
    # Parts of a model may lie on several devices.
    device = scores[0].device
    flat = torch.cat([score.flatten().to(device) for score in scores])
    cost = torch.cat([torch.full((n,), c, device=device) for n, c in zip(sizes, costs, strict=True)])
    order = flat.sort(descending=True, stable=True).indices
    if one_each and len(scores) > 1:
        first = torch.zeros_like(flat, dtype=torch.bool)
        start = 0
        for part in flat.split(sizes):
            first[start + part.sort(descending=True, stable=True).indices[0]] = True
            start += len(part)
        order = order[first[order].to(torch.int8).sort(descending=True, stable=True).indices]
    order = order[flat[order] > EXCLUDED]
    spent = cost[order].cumsum(0)
    taken = spent <= budget
    left = budget - (int(spent[taken][-1]) if bool(taken.any()) else 0)
    while left > 0:
        # Where blocks differ in cost, the first that does not fit leaves room for a cheaper one after it.
        fits = (~taken & (cost[order] <= left)).nonzero()
        if len(fits) == 0:
            break
        taken[fits[0]] = True
        left -= int(cost[order[fits[0]]])
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    chosen[order[taken]] = True
    parts = chosen.split(sizes)
    return [part.view(score.shape).to(score.device) for part, score in zip(parts, scores, strict=True)]


def live_cost(masks: Sequence[Tensor], costs: Sequence[int]) -> int:
    """Live blocks of weight under some masks."""
    return sum(int(mask.sum()) * cost for mask, cost in zip(masks, costs, strict=True))
