"""One mask update: keep the best blocks by weight, grow the best dead blocks by gradient.

Our reading of the method: RigL's drop and grow (arXiv 1911.11134) on blocks. `blast` and `rigl_swap` differ in `grow`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from blast.sparsity.selection import EXCLUDED, BoolArray, FloatArray, as_numpy, select_blocks


def keep_best(
    live: Sequence[Tensor], keep_scores: Sequence[Tensor], budget: int, costs: Sequence[int] | None = None
) -> list[Tensor]:
    """The live blocks with the highest keep scores, within a budget.

    Args:
        live: Masks, bool `[rows, cols]`, of one pruning scope.
        keep_scores: Scores of the same shapes.
        budget: Weight blocks to keep.
        costs: Matrices under each mask; 1 each if None.

    Returns:
        Masks of the same shapes, on the devices of `live`.
    """
    kept = _keep_best([as_numpy(mask) for mask in live], [as_numpy(score) for score in keep_scores], budget, costs)
    return _as_tensors(kept, live)


def prune_and_grow(
    live: Sequence[Tensor],
    keep_scores: Sequence[Tensor],
    grow_scores: Sequence[Tensor] | None,
    budget: int,
    grow: str,
    swap_limit: float = 0.3,
    costs: Sequence[int] | None = None,
    grow_share: float = 1.0,
) -> list[Tensor]:
    """New masks from the old ones.

    `kept` are the best live blocks within the budget. `wanted` are the best blocks by grow score, live or not, within
    the same budget (with `union` within `grow_share` of it). `union` returns both. `swap` grows the best of `wanted`
    that are not kept, at most `swap_limit` of the budget, and drops the worst of `kept` for them. It grows more
    where fewer blocks are live than the budget allows. `none` returns `kept`.

    Args:
        live: Masks before the update, bool `[rows, cols]`, of one pruning scope.
        keep_scores: Keep scores of the same shapes.
        grow_scores: Grow scores of the same shapes; not used by `none`.
        budget: Weight blocks that the target sparsity allows.
        grow: `union`, `swap` or `none`.
        swap_limit: Largest share of the budget that `swap` exchanges.
        costs: Matrices under each mask; 1 each if None.
        grow_share: Share of the budget that `union` fills by grow score.

    Returns:
        Masks of the same shapes, on the devices of `live`; with `swap` and `none` they cost exactly the budget.
    """
    costs = costs or [1] * len(live)
    before, keep = [as_numpy(mask) for mask in live], [as_numpy(score) for score in keep_scores]
    kept = _keep_best(before, keep, budget, costs)
    if grow == "none" or grow_scores is None:
        return _as_tensors(kept, live)
    gain = [as_numpy(score) for score in grow_scores]
    wanted = select_blocks(gain, int(grow_share * budget) if grow == "union" else budget, costs, one_each=False)
    grown = [want & ~old for want, old in zip(wanted, kept, strict=True)]
    if grow == "swap":
        missing = budget - sum(int(np.count_nonzero(mask)) * cost for mask, cost in zip(before, costs, strict=True))
        most = min(max(int(swap_limit * budget), missing), budget - sum(costs))
        grown = select_blocks(_exclude_outside(gain, grown), most, costs, one_each=False)
        stay = [old & ~new for old, new in zip(before, grown, strict=True)]
        spent = sum(int(np.count_nonzero(new)) * cost for new, cost in zip(grown, costs, strict=True))
        kept = _keep_best(stay, keep, budget - spent, costs)
    return _as_tensors([old | new for old, new in zip(kept, grown, strict=True)], live)


def _keep_best(
    live: Sequence[BoolArray], scores: Sequence[FloatArray], budget: int, costs: Sequence[int] | None
) -> list[BoolArray]:
    return select_blocks(_exclude_outside(scores, live), budget, costs)


def _exclude_outside(scores: Sequence[FloatArray], allowed: Sequence[BoolArray]) -> list[FloatArray]:
    return [np.where(mask, score, EXCLUDED) for score, mask in zip(scores, allowed, strict=True)]


def _as_tensors(masks: Sequence[BoolArray], like: Sequence[Tensor]) -> list[Tensor]:
    return [torch.from_numpy(mask).to(tensor.device) for mask, tensor in zip(masks, like, strict=True)]
