"""Keep scores that take the hidden block of a block into account."""

from __future__ import annotations

import pytest
import torch
from experts_models import build
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsity_models import tiny_gpt2, tiny_llama
from torch import nn

import blast
from blast.block_sparse.blocks import BlockShape
from blast.errors import BlastError
from blast.model.discovery import find_mlps, match_matrices
from blast.sparsity.joint_scores import joint_scores
from blast.sparsity.mask_groups import find_mask_groups
from blast.sparsity.one_shot import one_shot_masks
from blast.sparsity.one_shot_calibrated import prune_once_


def config(**changes) -> blast.SparsifyConfig:
    return blast.SparsifyConfig(**{"sparsity": 0.75, "block": 16, "steps": 1, "joint_hidden": True, **changes})


def useless(model: nn.Module, masks: dict[str, torch.Tensor]) -> int:
    """Live blocks in hidden blocks that are dead in another matrix of the MLP; blocks are square."""
    count = 0
    for mlp in find_mlps(model):
        by_unit = [masks[t.name] if t is not mlp.down else masks[t.name].t() for t in mlp.targets]
        alive = torch.stack([mask.any(1) for mask in by_unit]).all(0)
        count += sum(int(mask[~alive].sum()) for mask in by_unit)
    return count


def mlp_targets(hidden: int, width: int, gated: bool) -> list[list]:
    names = ("gate_proj", "up_proj", "down_proj") if gated else ("fc1", "fc2")
    down = names[-1]
    model = nn.ModuleDict({"mlp": nn.ModuleDict(
        {name: nn.Linear(*((width, hidden) if name == down else (hidden, width))) for name in names}
    )})  # fmt: skip
    return [[target] for target in match_matrices(model)]


@settings(deadline=None, max_examples=50)
@given(st.booleans(), st.sampled_from([(4, 4), (2, 4), (8, 2), (4, 6)]), st.integers(0, 10_000), st.floats(0, 0.9))
def test_the_factor_is_that_of_its_definition(gated, block, seed, dead):
    """Written unit by unit: the geometric mean of the norms of the other matrices, averaged over the units."""
    hidden, width = 24, 48
    members, shape = mlp_targets(hidden, width, gated), BlockShape(*block)
    generator = torch.Generator().manual_seed(seed)
    scores = []
    for (target,) in members:
        grid = (target.shape[0] // shape.rows, target.shape[1] // shape.cols)
        score = torch.rand(grid, generator=generator)
        scores.append(score * (torch.rand(grid, generator=generator) >= dead))
    joint = joint_scores(members, shape, scores)
    units = []
    for (target,), score in zip(members, scores, strict=True):
        down = target.role in ("down", "fc2")
        side = shape.cols if down else shape.rows
        units.append((score.square().sum(0 if down else 1) / side).double().repeat_interleave(side))
    for place, ((target,), score, found) in enumerate(zip(members, scores, joint, strict=True)):
        down = target.role in ("down", "fc2")
        side = shape.cols if down else shape.rows
        others = [unit.view(-1, side).mean(1).sqrt() for n, unit in enumerate(units) if n != place]
        factor = torch.stack(others).log().mean(0).exp()
        if factor.any():
            factor = factor / factor[factor > 0].mean()
        expected = score * (factor if down else factor[:, None])
        assert torch.allclose(found, expected.float(), rtol=1e-4, atol=1e-6)
        assert found.dtype == torch.float32


def test_a_block_without_a_live_counterpart_goes_first():
    model = tiny_gpt2()
    up, down = (model.transformer.h[0].mlp.c_fc, model.transformer.h[0].mlp.c_proj)
    with torch.no_grad():
        up.weight[:, 16:] *= 0.01  # Conv1D: hidden units are columns of up
        down.weight[16:32] *= 100  # strong rows whose hidden units hardly do anything
        up.weight[:, 16:32] = 0
    masks = one_shot_masks(model, config())
    assert not masks["transformer.h.0.mlp.c_proj"][:, 1].any()
    assert one_shot_masks(model, config(joint_hidden=False))["transformer.h.0.mlp.c_proj"][:, 1].all()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("ranking", ["matrix", "layer", "model"])
def test_budgets_stay_exact_and_fewer_blocks_are_useless(ranking, tied):
    model = tiny_llama()
    with torch.no_grad():
        for mlp in find_mlps(model):
            for target in mlp.targets:
                strength = 0.5 + torch.rand(8, generator=torch.Generator().manual_seed(len(target.name)))
                scale = strength.repeat_interleave(16)
                target.weight.mul_(scale if target is mlp.down else scale[:, None])
    found = {}
    for joint in (False, True):
        masks = one_shot_masks(model, config(sparsity=0.9, joint_hidden=joint, ranking=ranking, tie_gate_up=tied))
        found[joint] = sum(int(mask.sum()) for mask in masks.values()), useless(model, masks)
        assert all(mask.any() for mask in masks.values())
    assert found[True][0] == found[False][0]
    assert found[True][1] < found[False][1]


def test_training_ends_at_the_exact_budget():
    model = nn.ModuleList(nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)) for _ in range(2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    sparsifier = blast.Sparsifier(model, optimizer, config(block=8, steps=6, update_every=1))
    for step in range(6):
        optimizer.zero_grad()
        x = torch.randn(8, 32, generator=torch.Generator().manual_seed(step))
        (model[1](model[0](x)) - x).square().mean().backward()
        sparsifier.step()
        optimizer.step()
    assert {name: int(mask.sum()) for name, mask in sparsifier.masks.items()} == dict.fromkeys(sparsifier.masks, 8)


def test_a_matrix_in_two_mlps_serves_both():
    model = nn.ModuleList(nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)) for _ in range(2))
    model[1][0].weight = model[0][0].weight
    with torch.no_grad():
        model[0][2].weight[:, 16:] = 0
        model[1][2].weight[:, :48] = 0
    masks = one_shot_masks(model, config(sparsity=0.5))
    assert masks["0.0"] is masks["1.0"]
    assert masks["0.0"].any(1).tolist() == [True, False, False, True]


def test_a_calibration_may_score_hidden_blocks_jointly():
    model = tiny_llama()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight[:, 32:] = 0
    batches = [torch.randint(96, (4, 8), generator=torch.Generator().manual_seed(0))]
    masks = prune_once_(model, config(keep_score="wanda"), batches, lambda m, x: m(x))
    for layer in range(2):
        for part in ("gate", "up"):
            assert not masks[f"model.layers.{layer}.mlp.{part}_proj"][2:].any()


def test_experts_with_gate_and_up_together_are_refused():
    with pytest.raises(BlastError, match=r"cannot tell the hidden units of 'model\.layers\.0\.mlp\.experts\.gate_up_p"):
        find_mask_groups(build("qwen3_moe"), config(block=8))


def test_matrices_without_hidden_units_are_refused():
    with pytest.raises(BlastError, match=r"joins the matrices of an MLP, and '.*attn.*' is in none; leave it out of"):
        find_mask_groups(tiny_gpt2(), config(targets=["mlp", "attention"]))
    with pytest.raises(BlastError, match=r"joint_hidden joins '.*c_fc' with the other matrices of its MLP, which are"):
        find_mask_groups(tiny_gpt2(), config(targets=["*.mlp.c_fc"]))
    with pytest.raises(BlastError, match="joint_hidden needs scores of the weights, and the keep score is 'random'"):
        config(keep_score="random")


def test_a_config_without_it_keeps_its_plain_form():
    assert "joint_hidden" not in config(joint_hidden=False).to_dict()
    assert blast.SparsifyConfig.from_dict(config().to_dict()) == config()
