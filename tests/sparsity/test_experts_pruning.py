"""Experts in three-dimensional parameters are pruned while a model trains, each with a mask of its own."""

from __future__ import annotations

import copy

import pytest
import torch
from experts_models import FAMILIES, build, loss_of
from sparsity_models import OPTIMIZERS
from torch import nn

from blast.block_sparse.blocks import BlockShape, keep_count, tiles
from blast.errors import BlastError
from blast.model.convert import to_sparse
from blast.model.discovery import match_matrices
from blast.sparsity.config import SparsifyConfig
from blast.sparsity.one_shot import apply_masks_, one_shot_masks
from blast.sparsity.sparsifier import Sparsifier

BLOCK = BlockShape(8, 8)


def make(model: nn.Module, optimizer: str = "adamw", **settings) -> Sparsifier:
    settings = {"sparsity": 0.75, "block": 8, "steps": 4, "update_every": 2, "hold": 0.25, **settings}
    return Sparsifier(model, OPTIMIZERS[optimizer](model.parameters()), SparsifyConfig(**settings))


def train(sparsifier: Sparsifier, steps: int) -> None:
    for _ in range(steps):
        sparsifier.optimizer.zero_grad()
        loss_of(sparsifier.model, sparsifier.step_count).backward()
        sparsifier.step()
        sparsifier.optimizer.step()


def filled(weight: torch.Tensor) -> torch.Tensor:
    """Which blocks of a weight `[out, in]` have an element that is not zero."""
    return (tiles(weight, BLOCK) != 0).any(dim=3).any(dim=1)


def test_warm_regrown_state_of_experts_is_refused():
    with pytest.raises(BlastError, match=r"'warm' cannot train experts, such as '.+\.0'; set regrown_state to 'zero'"):
        make(build(next(iter(FAMILIES))), regrown_state="warm")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_expert_reaches_the_sparsity_and_its_dead_blocks_are_zero(family):
    sparsifier = make(build(family))
    matrices = match_matrices(sparsifier.model)
    for _ in range(2):
        train(sparsifier, 2)
        assert not any((filled(target.weight) & ~sparsifier.masks[target.name]).any() for target in matrices)
    assert any(target.expert is not None for target in matrices)
    for target in matrices:
        mask = sparsifier.masks[target.name]
        assert int(mask.sum()) == keep_count(mask.numel(), 0.75)
        assert torch.equal(filled(target.weight), mask)
    assert set(sparsifier.report()["matrices"]) == {target.name for target in matrices}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_moments_of_dead_blocks_are_zero_too(optimizer):
    sparsifier = make(build("gpt_oss"), optimizer)
    train(sparsifier, 3)
    state = sparsifier.optimizer.state
    for target in match_matrices(sparsifier.model):
        moments = [value for value in state[target.parameter].values() if value.shape == target.parameter.shape]
        assert moments
        for moment in moments:
            assert not (filled(target.as_out_in(moment)) & ~sparsifier.masks[target.name]).any()


def test_an_expert_without_a_token_keeps_its_mask_until_the_last_update():
    model = build("gpt_oss")
    for layer in model.model.layers:
        nn.init.constant_(layer.mlp.router.bias[3], -1e4)
    sparsifier = make(model, steps=8, update_every=1)
    train(sparsifier, 4)
    masks = {name: mask for name, mask in sparsifier.masks.items() if ".0.mlp.experts." in name}
    assert [name for name, mask in masks.items() if mask.all()] == [name for name in masks if name.endswith(".3")]
    train(sparsifier, 3)
    assert all(int(mask.sum()) == keep_count(mask.numel(), 0.75) for mask in sparsifier.masks.values())


def test_sparse_execution_of_experts_is_refused_and_auto_stays_masked():
    with pytest.raises(BlastError, match=r"experts of 'model.layers.0.mlp.experts' cannot train in the sparse state"):
        make(build("qwen3_moe"), execution="sparse")
    with pytest.warns(UserWarning, match="training stays masked-dense at any sparsity"):
        sparsifier = make(build("qwen3_moe"), execution="auto", break_even=0.1)
    train(sparsifier, 3)
    assert sparsifier.execution == "masked"
    with pytest.raises(BlastError, match="cannot train in the sparse state"):
        sparsifier.to_sparse()


def test_experts_that_cannot_be_pruned_are_told_with_the_reason():
    model = build("qwen2_moe")
    for layer in model.model.layers:
        layer.mlp.experts.scale = nn.Parameter(torch.ones(4))
    told = r"^\d+% of the MLP weights .* 'model.layers.0.mlp.experts' cannot be pruned because the parameter 'scale' is"
    with pytest.warns(UserWarning, match=told):
        sparsifier = make(model)
    assert all("shared_expert" in name for name in sparsifier.masks)
    assert "model.layers.*.mlp.experts.down_proj" in sparsifier.report()["dense_mlp_weights"]["names"]


def test_experts_that_are_not_loaded_are_refused():
    with pytest.raises(BlastError, match=r"^'model.layers.0.mlp.experts.gate_up_proj' is on the meta device"):
        make(build("mixtral").to("meta"))


def test_a_conversion_before_the_training_ends_is_told():
    sparsifier = make(build("mixtral"))
    train(sparsifier, 1)
    to_sparse(sparsifier.model, sparsifier.masks)
    with pytest.raises(BlastError, match=r"^'model.layers.0.mlp.experts' was replaced after"):
        sparsifier.step()


def test_some_experts_of_a_parameter_cannot_be_pruned_alone():
    with pytest.raises(BlastError, match=r"^the targets name 2 of the 4 experts of 'model.layers.0.mlp.experts.down"):
        make(build("olmoe"), targets=("*.experts.down_proj.[01]",))


def test_one_shot_masks_of_experts_keep_their_largest_blocks():
    model = build("llama4")
    config = SparsifyConfig(sparsity=0.5, block=8, steps=1)
    masks = one_shot_masks(model, config)
    for target in match_matrices(model):
        norms = tiles(target.weight, BLOCK).square().sum(dim=(1, 3))
        assert norms[masks[target.name]].min() > norms[~masks[target.name]].max()
    apply_masks_(model, masks, 8)
    assert all(torch.equal(filled(target.weight), masks[target.name]) for target in match_matrices(model))


def test_a_resumed_run_continues_as_if_it_had_not_stopped():
    whole = make(build("mixtral"))
    train(whole, 2)
    saved = copy.deepcopy([whole.state_dict(), whole.model.state_dict(), whole.optimizer.state_dict()])
    resumed = make(build("mixtral"))
    for part, state in zip((resumed, resumed.model, resumed.optimizer), saved, strict=True):
        part.load_state_dict(state)
    train(whole, 2)
    train(resumed, 2)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])
