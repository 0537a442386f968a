"""One mask update: keep the best blocks by weight, grow the best dead ones by gradient.

Our reading of the method: RigL's drop and grow (arXiv 1911.11134) on blocks. The methods differ in `grow` alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from blast.sparsity.selection import EXCLUDED, best_blocks, host_array


def keep_best(
    live: Sequence[Tensor], keep_scores: Sequence[Tensor], budget: int, costs: Sequence[int] | None = None
) -> list[Tensor]:
    """The best live blocks by their keep score, as many as the budget pays for.

    Args:
        live: Masks, bool `[rows, cols]`, of the matrices that compete.
        keep_scores: Scores of the same shapes.
        budget: Blocks of weight to keep.
        costs: Matrices that each mask serves.

    Returns:
        Masks of the same shapes, where `live` is.
    """
    kept = _keep_best([host_array(mask) for mask in live], [host_array(score) for score in keep_scores], budget, costs)
    return _beside(live, kept)


def prune_and_grow(
    live: Sequence[Tensor],
    keep_scores: Sequence[Tensor],
    grow_scores: Sequence[Tensor] | None,
    budget: int,
    grow: str,
    swap_limit: float = 0.3,
    costs: Sequence[int] | None = None,
) -> list[Tensor]:
    """New masks from the old ones.

    `kept` are the best live blocks within the budget; `wanted` are the best by gradient within the same budget,
    whether kept or not. `union` returns both. `swap` grows the best of `wanted` that are not kept, at most
    `swap_limit` of the budget, and drops the worst of `kept` for them. `none` returns `kept`.

    Args:
        live: Masks before the update, bool `[rows, cols]`, of the matrices that compete.
        keep_scores: Scores of the same shapes to keep by.
        grow_scores: Scores of the same shapes to grow by; unused by `none`.
        budget: Blocks of weight that the target sparsity pays for.
        grow: `union`, `swap` or `none`.
        swap_limit: Most of the budget that `swap` exchanges.
        costs: Matrices that each mask serves.

    Returns:
        Masks of the same shapes, where `live` is; with `swap` and `none` they cost exactly the budget.
    """
    costs = costs or [1] * len(live)
    before, keep = [host_array(mask) for mask in live], [host_array(score) for score in keep_scores]
    kept = _keep_best(before, keep, budget, costs)
    if grow == "none" or grow_scores is None:
        return _beside(live, kept)
    gain = [host_array(score) for score in grow_scores]
    wanted = best_blocks(gain, budget, costs, one_each=False)
    grown = [want & ~old for want, old in zip(wanted, kept, strict=True)]
    if grow == "swap":
        most = min(int(swap_limit * budget), budget - sum(costs))
        grown = best_blocks(_among(gain, grown), most, costs, one_each=False)
        stay = [old & ~new for old, new in zip(before, grown, strict=True)]
        spent = sum(int(np.count_nonzero(new)) * cost for new, cost in zip(grown, costs, strict=True))
        kept = _keep_best(stay, keep, budget - spent, costs)
    return _beside(live, [old | new for old, new in zip(kept, grown, strict=True)])


def _keep_best(
    live: Sequence[np.ndarray], scores: Sequence[np.ndarray], budget: int, costs: Sequence[int] | None
) -> list[np.ndarray]:
    return best_blocks(_among(scores, live), budget, costs)


def _among(scores: Sequence[np.ndarray], allowed: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [np.where(mask, score, EXCLUDED) for score, mask in zip(scores, allowed, strict=True)]


def _beside(like: Sequence[Tensor], masks: Sequence[np.ndarray]) -> list[Tensor]:
    return [torch.from_numpy(mask).to(tensor.device) for mask, tensor in zip(masks, like, strict=True)]
