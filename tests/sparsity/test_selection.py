from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blast.block_sparse.blocks import keep_count
from blast.sparsity.prune_and_grow import keep_best, prune_and_grow
from blast.sparsity.selection import EXCLUDED, as_numpy, block_budget, live_cost, select_blocks

SEEDS = st.integers(0, 10_000)
SHAPES = st.lists(st.tuples(st.integers(1, 8), st.integers(1, 8)), min_size=1, max_size=4)
SPARSITIES = st.floats(0, 0.99)


def scores_of(shapes, seed: int, levels: int = 0) -> list[torch.Tensor]:
    """Random scores; with `levels`, rounded to so few values that many tie."""
    generator = torch.Generator().manual_seed(seed)
    scores = [torch.rand(shape, generator=generator) for shape in shapes]
    return [(score * levels).floor() for score in scores] if levels else scores


def select(scores: list[torch.Tensor], budget: int, costs=None, one_each: bool = True) -> list[torch.Tensor]:
    masks = select_blocks([as_numpy(score) for score in scores], budget, costs, one_each)
    return [torch.from_numpy(mask) for mask in masks]


def masks_of(shapes, seed: int, budget: int) -> list[torch.Tensor]:
    return select(scores_of(shapes, seed), budget)


@settings(deadline=None, max_examples=50)
@given(SHAPES, SPARSITIES, SEEDS, st.integers(0, 3))
def test_mask_keeps_exactly_the_requested_blocks(shapes, sparsity, seed, levels):
    sizes = [rows * cols for rows, cols in shapes]
    budget = block_budget(sizes, [1] * len(sizes), sparsity)
    masks = select(scores_of(shapes, seed, levels), budget)
    assert sum(int(mask.sum()) for mask in masks) == budget == max(keep_count(sum(sizes), sparsity), len(sizes))
    assert all(mask.any() for mask in masks)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 10), st.integers(1, 10), SPARSITIES, SEEDS)
def test_kept_blocks_score_at_least_as_high_as_dropped_ones(rows, cols, sparsity, seed):
    (scores,) = scores_of([(rows, cols)], seed, levels=4)
    (mask,) = select([scores], keep_count(rows * cols, sparsity))
    if not mask.all():
        assert scores[mask].min() >= scores[~mask].max()


@settings(deadline=None, max_examples=40)
@given(SHAPES, st.lists(st.integers(1, 2), min_size=4, max_size=4), SPARSITIES, SEEDS)
def test_masks_of_unlike_cost_never_exceed_the_budget_and_miss_it_by_less_than_a_block(shapes, costs, sparsity, seed):
    costs = costs[: len(shapes)]
    budget = block_budget([rows * cols for rows, cols in shapes], costs, sparsity)
    masks = select(scores_of(shapes, seed), budget, costs)
    assert all(mask.any() for mask in masks)
    # One short only where nothing cheap enough is left to take.
    short = budget - live_cost(masks, costs)
    assert short in (0, 1)
    if short:
        assert all(mask.all() for mask, cost in zip(masks, costs, strict=True) if cost == 1)


def test_ties_go_to_the_earlier_matrix_and_the_earlier_block():
    masks = select([torch.ones(2, 2), torch.ones(2, 2)], 5)
    assert [mask.int().tolist() for mask in masks] == [[[1, 1], [1, 1]], [[1, 0], [0, 0]]]
    masks = select([torch.ones(2, 2), torch.ones(2, 2)], 3)
    assert [mask.int().tolist() for mask in masks] == [[[1, 1], [0, 0]], [[1, 0], [0, 0]]]


def test_no_matrix_is_emptied_by_a_wider_ranking():
    weak, strong = torch.full((2, 2), 0.1), torch.full((2, 2), 9.0)
    masks = select([weak, strong], 4)
    assert [int(mask.sum()) for mask in masks] == [1, 3]


def test_excluded_blocks_are_never_chosen():
    scores = torch.tensor([[EXCLUDED, 1.0], [EXCLUDED, 0.0]])
    (mask,) = select([scores], 3)
    assert mask.tolist() == [[False, True], [False, True]]


@settings(deadline=None, max_examples=50)
@given(SHAPES, SPARSITIES, SPARSITIES, SEEDS)
def test_union_holds_what_is_kept_and_what_is_wanted(shapes, sooner, later, seed):
    sizes, ones = [rows * cols for rows, cols in shapes], [1] * len(shapes)
    before, now = (block_budget(sizes, ones, s) for s in sorted((sooner, later)))
    live = masks_of(shapes, seed, before)
    keep, grow = scores_of(shapes, seed + 1), scores_of(shapes, seed + 2)
    kept = keep_best(live, keep, now)
    wanted = select(grow, now, one_each=False)
    union = prune_and_grow(live, keep, grow, now, "union")
    assert all(torch.equal(u, k | w) for u, k, w in zip(union, kept, wanted, strict=True))
    assert now <= live_cost(union, ones) <= 2 * now


@settings(deadline=None, max_examples=60)
@given(SHAPES, SPARSITIES, SPARSITIES, SEEDS, st.floats(0, 1), st.lists(st.booleans(), min_size=4, max_size=4))
def test_swap_holds_the_budget_exactly_and_swaps_no_more_than_its_share(shapes, sooner, later, seed, share, tied):
    sizes, costs = [rows * cols for rows, cols in shapes], [1 + t for t in tied[: len(shapes)]]
    before, now = (block_budget(sizes, costs, s) for s in sorted((sooner, later)))
    live = select(scores_of(shapes, seed), before, costs)
    keep, grow = scores_of(shapes, seed + 1), scores_of(shapes, seed + 2)
    swapped = prune_and_grow(live, keep, grow, now, "swap", share, costs)
    grown = [new & ~old for new, old in zip(swapped, live, strict=True)]
    assert live_cost(grown, costs) <= share * now
    assert all(mask.any() for mask in swapped)
    if len(set(costs)) == 1:
        assert live_cost(swapped, costs) == now
    else:
        assert now - 2 <= live_cost(swapped, costs) <= now


def test_swap_grows_the_best_wanted_and_drops_the_worst_kept():
    live = [torch.tensor([[True, True, True, True, False, False]])]
    keep = [torch.tensor([[4.0, 3.0, 2.0, 1.0, 0.0, 0.0]])]
    grow = [torch.tensor([[0.0, 0.1, 0.2, 0.3, 8.0, 9.0]])]
    (one,) = prune_and_grow(live, keep, grow, 4, "swap", swap_limit=0.25)
    assert one.int().tolist() == [[1, 1, 1, 0, 0, 1]]
    (two,) = prune_and_grow(live, keep, grow, 4, "swap", swap_limit=0.5)
    assert two.int().tolist() == [[1, 1, 0, 0, 1, 1]]
    (none,) = prune_and_grow(live, keep, grow, 4, "swap", swap_limit=0.0)
    assert torch.equal(none, live[0])


def test_growing_nothing_only_drops():
    live = [torch.tensor([[True, True, True, False]])]
    keep, grow = [torch.tensor([[1.0, 3.0, 2.0, 9.0]])], [torch.tensor([[0.0, 0.0, 0.0, 9.0]])]
    (mask,) = prune_and_grow(live, keep, grow, 2, "none")
    assert mask.int().tolist() == [[0, 1, 1, 0]]
