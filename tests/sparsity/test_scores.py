"""Keep and grow scores: norms of blocks, or random numbers that depend on their seeds only."""

from __future__ import annotations

import pytest
import torch
from sparsity_models import block_norms, loss_of, tiny_llama, weight_of

from blast.sparsity.config import SparsifyConfig
from blast.sparsity.mask_groups import find_mask_groups
from blast.sparsity.one_shot import full_mask
from blast.sparsity.scores import keep_and_grow_scores, keep_scores, random_scores


def config(**settings) -> SparsifyConfig:
    return SparsifyConfig.from_dict({"sparsity": 0.5, "block": 16, "steps": 10, **settings})


def root_mean_square(norms: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(norms).square().mean(0).sqrt()


@pytest.mark.parametrize("tied", [False, True])
def test_scores_are_the_root_mean_square_of_the_norms_of_the_matrices_under_a_mask(tied):
    model, settings = tiny_llama(), config(tie_gate_up=tied)
    loss_of(model, 0).backward()
    groups, _ = find_mask_groups(model, settings)
    assert {len(group.matrices) for group in groups} == ({1, 2} if tied else {1})
    live = [full_mask(group) for group in groups]
    keep, grow = keep_and_grow_scores(groups, live, settings, step=0)
    for group, by_weight, by_gradient in zip(groups, keep, grow, strict=True):
        names = [target.name for target in group.matrices]
        weights = [block_norms(weight_of(model, name), group.block) for name in names]
        gradients = [block_norms(model.get_submodule(name).weight.grad, group.block) for name in names]
        torch.testing.assert_close(by_weight, root_mean_square(weights))
        torch.testing.assert_close(by_gradient, root_mean_square(gradients))
    assert all(map(torch.equal, keep, keep_scores(groups, live, settings, step=0)))


def test_random_keep_scores_are_the_same_in_every_step_and_random_grow_scores_are_not():
    groups, _ = find_mask_groups(tiny_llama(), config())
    live, settings = [full_mask(group) for group in groups], config(keep_score="random", grow_score="random")
    (keep, grow), (later_keep, later_grow) = (keep_and_grow_scores(groups, live, settings, step) for step in (0, 1))
    assert all(map(torch.equal, keep, later_keep))
    assert not any(map(torch.equal, grow, later_grow))


def test_random_scores_depend_on_their_seeds_alone():
    one = random_scores((3, 5), 0, "keep", 1)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    again = random_scores((3, 5), 0, "keep", 1)
    assert torch.equal(one, again)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(one, random_scores((3, 5), 0, "keep", 2))
    assert not torch.equal(one, random_scores((3, 5), 1, "keep", 1))
