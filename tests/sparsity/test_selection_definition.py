"""The selection of blocks against its definition, written in the simplest way."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blast.sparsity.prune_and_grow import prune_and_grow
from blast.sparsity.selection import EXCLUDED, as_numpy, select_blocks

SHAPES = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=3)
SEEDS = st.integers(0, 10_000)
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16])
# Few levels tie often; 0 means none.
LEVELS = st.integers(0, 3)


def defined(scores: list[torch.Tensor], budget: int, costs: list[int], one_each: bool) -> list[torch.Tensor]:
    """Takes blocks from the best down, the earlier of two equal ones first, while the budget allows."""
    blocks = [(n, place) for n, score in enumerate(scores) for place in range(score.numel())]
    value = {(n, place): scores[n].flatten()[place].item() for n, place in blocks}
    best = {min((b for b in blocks if b[0] == n), key=lambda b: (-value[b], b)) for n in range(len(scores))}
    masks = [torch.zeros(score.shape, dtype=torch.bool) for score in scores]
    for n, place in sorted(blocks, key=lambda b: (one_each and b not in best, -value[b], b)):
        if value[n, place] > EXCLUDED and costs[n] <= budget:
            masks[n].view(-1)[place] = True
            budget -= costs[n]
    return masks


def select(scores: list[torch.Tensor], budget: int, costs=None, one_each: bool = True) -> list[torch.Tensor]:
    masks = select_blocks([as_numpy(score) for score in scores], budget, costs, one_each)
    return [torch.from_numpy(mask) for mask in masks]


def scores_of(shapes, seed: int, levels: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = [torch.rand(shape, generator=generator) for shape in shapes]
    return [((score * levels).floor() if levels else score).to(dtype) for score in scores]


def excluding(scores: list[torch.Tensor], seed: int) -> list[torch.Tensor]:
    """Scores of which some are excluded."""
    generator = torch.Generator().manual_seed(seed)
    return [s.masked_fill(torch.rand(s.shape, generator=generator) < 0.4, EXCLUDED) for s in scores]


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@settings(deadline=None, max_examples=200)
@given(SHAPES, SEEDS, LEVELS, DTYPES, st.lists(st.integers(1, 3), min_size=3, max_size=3), st.integers(0, 60))
def test_the_best_blocks_are_those_of_the_definition(shapes, seed, levels, dtype, costs, budget):
    costs = costs[: len(shapes)]
    scores = excluding(scores_of(shapes, seed, levels, dtype), seed + 1)
    for one_each in (True, False):
        assert same(select(scores, budget, costs, one_each), defined(scores, budget, costs, one_each))


@settings(deadline=None, max_examples=200)
@given(
    SHAPES, SEEDS, LEVELS, st.lists(st.integers(1, 2), min_size=3, max_size=3), st.integers(0, 40), st.floats(0, 1),
    st.sampled_from(["union", "swap", "none"]),
)  # fmt: skip
def test_a_mask_update_is_that_of_the_definition(shapes, seed, levels, costs, spare, share, grow):
    costs = costs[: len(shapes)]
    budget = sum(costs) + spare
    live = defined(scores_of(shapes, seed, 0), budget + 4, costs, True)
    keep, gain = scores_of(shapes, seed + 1, levels), scores_of(shapes, seed + 2, levels)

    def among(scores, masks):
        return [score.masked_fill(~mask, EXCLUDED) for score, mask in zip(scores, masks, strict=True)]

    kept = defined(among(keep, live), budget, costs, True)
    grown = [torch.zeros_like(mask) for mask in live]
    if grow != "none":
        wanted = defined(gain, budget, costs, False)
        grown = [want & ~old for want, old in zip(wanted, kept, strict=True)]
    if grow == "swap":
        most = min(int(share * budget), budget - sum(costs))
        grown = defined(among(gain, grown), most, costs, False)
        spent = sum(int(new.sum()) * cost for new, cost in zip(grown, costs, strict=True))
        stay = [old & ~new for old, new in zip(live, grown, strict=True)]
        kept = defined(among(keep, stay), budget - spent, costs, True)
    expected = [old | new for old, new in zip(kept, grown, strict=True)]
    assert same(prune_and_grow(live, keep, gain, budget, grow, share, costs), expected)


def test_what_is_no_number_is_never_chosen():
    scores = torch.tensor([[math.nan, 1.0], [2.0, math.nan]])
    (alone,) = select([scores], 3)
    assert alone.tolist() == [[False, True], [True, False]]
    _, beside = select([torch.ones(1, 1), scores], 4)
    assert torch.equal(beside, alone)
