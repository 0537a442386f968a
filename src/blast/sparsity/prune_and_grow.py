"""One mask update: keep the best blocks by weight, grow the best dead ones by gradient.

Our reading of the method: RigL's drop and grow (arXiv 1911.11134) on blocks. The methods differ in `grow` alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from blast.sparsity.mask import EXCLUDED, live_cost, top_blocks


def keep_best(
    live: Sequence[Tensor], keep_scores: Sequence[Tensor], budget: int, costs: Sequence[int] | None = None
) -> list[Tensor]:
    """The best live blocks by their keep score, as many as the budget pays for.

    Args:
        live: Masks, bool `[rows, cols]`, of the matrices that compete.
        keep_scores: Scores of the same shapes.
        budget: Blocks of weight to keep.
        costs: Matrices that each mask serves.
    """
    return top_blocks(_among(keep_scores, live), budget, costs)


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
        Masks of the same shapes; with `swap` and `none` they cost exactly the budget.
    """
    costs = costs or [1] * len(live)
    kept = keep_best(live, keep_scores, budget, costs)
    if grow == "none" or grow_scores is None:
        return kept
    wanted = top_blocks(grow_scores, budget, costs, one_each=False)
    grown = [want & ~keep for want, keep in zip(wanted, kept, strict=True)]
    if grow == "swap":
        most = min(int(swap_limit * budget), budget - sum(costs))
        grown = top_blocks(_among(grow_scores, grown), most, costs, one_each=False)
        stay = [old & ~new for old, new in zip(live, grown, strict=True)]
        kept = keep_best(stay, keep_scores, budget - live_cost(grown, costs), costs)
    return [keep | new for keep, new in zip(kept, grown, strict=True)]


def _among(scores: Sequence[Tensor], allowed: Sequence[Tensor]) -> list[Tensor]:
    return [score.masked_fill(~mask, EXCLUDED) for score, mask in zip(scores, allowed, strict=True)]
