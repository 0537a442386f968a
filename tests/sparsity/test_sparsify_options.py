from __future__ import annotations

import pytest
import torch
from sparsity_models import (
    CHOICES,
    MODELS,
    OPTIMIZERS,
    assert_dead_blocks_are_zero,
    block_norms,
    tiny_gpt2,
    tiny_llama,
    tiny_vit,
    train_step,
    weight_of,
)
from torch import nn

from blast.block_sparse.blocks import BlockShape, keep_count
from blast.errors import BlastError
from blast.sparsity.config import SparsifyConfig
from blast.sparsity.one_shot import apply_masks_, one_shot_masks
from blast.sparsity.sparsifier import Sparsifier


def config(**settings) -> SparsifyConfig:
    return SparsifyConfig.from_dict({"sparsity": 0.75, "block": 16, "steps": 6, "update_every": 2, **settings})


def trained(model: nn.Module, **settings) -> Sparsifier:
    """A sparsifier after its whole run, checked after each step."""
    sparsifier = Sparsifier(model, OPTIMIZERS["adamw"](model.parameters()), config(**settings))
    for _ in range(sparsifier.config.steps):
        train_step(sparsifier)
        assert_dead_blocks_are_zero(sparsifier)
    return sparsifier


@pytest.mark.parametrize(
    ("switch", "value"),
    # Scores that need activations are for one-shot pruning only.
    [(switch, value) for switch, values in CHOICES.items() for value in values if value not in ("wanda", "obs")]
    + [
        ("tie_gate_up", True),
        ("block", (8, 32)),
        ("hold", 0.0),
        ("hold", 1.0),
        ("initial_sparsity", 0.75),
        ("seed", 7),
    ],
)
def test_every_switch_ends_at_the_exact_budget(switch, value):
    sparsifier = trained(tiny_llama(), **{switch: value})
    assert sparsifier.finished
    assert sparsifier.sparsity_achieved == 0.75


@pytest.mark.parametrize("ranking", CHOICES["ranking"])
@pytest.mark.parametrize("model", MODELS)
def test_the_budget_is_exact_at_the_level_of_the_ranking(model, ranking):
    masks = one_shot_masks(MODELS[model](), config(sparsity=0.9, ranking=ranking))
    groups: dict[str, list[torch.Tensor]] = {}
    for name, mask in masks.items():
        layer = "0" if ".0." in name or "layer_0" in name else "1"
        groups.setdefault({"matrix": name, "layer": layer, "model": ""}[ranking], []).append(mask)
    for members in groups.values():
        assert sum(int(m.sum()) for m in members) == keep_count(sum(m.numel() for m in members), 0.9)
    if ranking != "matrix":
        assert any(int(mask.sum()) != keep_count(mask.numel(), 0.9) for mask in masks.values())


def test_one_shot_keeps_the_largest_blocks_and_applying_it_zeroes_the_rest():
    model = tiny_gpt2()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    masks = one_shot_masks(model, config())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    norms = {name: block_norms(weight_of(model, name), BlockShape(16, 16)) for name in masks}
    for name, mask in masks.items():
        assert norms[name][mask].min() >= norms[name][~mask].max()
    apply_masks_(model, masks, 16)
    for name, mask in masks.items():
        assert torch.equal(block_norms(weight_of(model, name), BlockShape(16, 16)) > 0, mask)
    untouched = [name for name in before if ".mlp.c_" not in name or not name.endswith("weight")]
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in untouched)


def test_applying_masks_refuses_what_does_not_fit_and_leaves_the_model_alone():
    model = tiny_gpt2()
    masks = one_shot_masks(model, config())
    before = weight_of(model, "transformer.h.0.mlp.c_fc").clone()
    with pytest.raises(BlastError, match=r"is \(16, 4\), but blocks of 32 need \(8, 2\)"):
        apply_masks_(model, masks, 32)
    with pytest.raises(BlastError, match=r"unknown matrix 'transformer.h.0.mlp.c_fcc'; did you mean"):
        apply_masks_(model, {**masks, "transformer.h.0.mlp.c_fcc": masks["transformer.h.0.mlp.c_fc"]}, 16)
    assert torch.equal(weight_of(model, "transformer.h.0.mlp.c_fc"), before)


def test_random_masks_are_static_and_follow_the_seed_alone():
    settings = {"keep_score": "random", "schedule": "constant", "grow": "none"}
    sparsifier = trained(tiny_gpt2(), **settings)
    torch.manual_seed(99)
    masks = one_shot_masks(tiny_gpt2(), config(**settings))
    assert all(torch.equal(mask, masks[name]) for name, mask in sparsifier.masks.items())
    other = one_shot_masks(tiny_gpt2(), config(**settings, seed=1))
    assert any(not torch.equal(mask, other[name]) for name, mask in masks.items())


def test_random_keep_under_a_rising_schedule_only_ever_drops():
    model = tiny_gpt2()
    settings = config(keep_score="random", grow="none", steps=8)
    sparsifier = Sparsifier(model, OPTIMIZERS["adamw"](model.parameters()), settings)
    before = sparsifier.masks
    for _ in range(8):
        train_step(sparsifier)
        assert not any((mask & ~before[name]).any() for name, mask in sparsifier.masks.items())
        before = sparsifier.masks
    # The order is drawn once, so dropping in steps ends where dropping at once does.
    at_once = one_shot_masks(model, settings)
    assert all(torch.equal(mask, at_once[name]) for name, mask in before.items())


def test_tied_gate_and_up_share_one_mask_ranked_by_both():
    model = tiny_llama()
    masks = one_shot_masks(model, config(tie_gate_up=True))
    gate, up = (f"model.layers.0.mlp.{part}_proj" for part in ("gate", "up"))
    assert masks[gate] is masks[up]
    squares = sum(block_norms(weight_of(model, name), BlockShape(16, 16)).square() for name in (gate, up))
    assert squares[masks[gate]].min() >= squares[~masks[gate]].max()
    assert int(masks[gate].sum()) == keep_count(masks[gate].numel(), 0.75)
    loose = one_shot_masks(model, config())
    assert not torch.equal(loose[gate], loose[up])


@pytest.mark.parametrize("ranking", CHOICES["ranking"])
def test_tied_masks_hold_the_budget_in_every_ranking(ranking):
    sparsifier = trained(tiny_llama(), tie_gate_up=True, ranking=ranking, grow="swap", sparsity=0.9)
    total = sum(mask.numel() for mask in sparsifier.masks.values())
    live = sum(int(mask.sum()) for mask in sparsifier.masks.values())
    if ranking == "matrix":
        assert live == 6 * keep_count(32, 0.9)
    elif ranking == "layer":
        assert live == 2 * keep_count(3 * 32, 0.9)
    else:
        assert live == keep_count(total, 0.9)
    assert sparsifier.sparsity_achieved == 1 - live / total


def test_first_and_last_layers_stay_dense_and_are_named():
    sparsifier = trained(tiny_vit(layers=4), dense_first=1, dense_last=2)
    assert {name.split(".")[2] for name in sparsifier.masks} == {"encoder_layer_1"}
    dense = sparsifier.report()["dense"]
    assert {name.split(".")[2] for name in dense} == {"encoder_layer_0", "encoder_layer_2", "encoder_layer_3"}
    assert all(weight_of(sparsifier.model, name).count_nonzero() == 64 * 128 for name in dense)


def test_attention_and_patterns_are_pruned_when_asked():
    masks = trained(tiny_llama(), targets=["attention"]).masks
    assert {name.split(".")[-1] for name in masks} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    masks = trained(tiny_gpt2(), targets=["*.mlp.c_fc", r"re:transformer\.h\.1\.attn\.c_proj"]).masks
    assert set(masks) == {"transformer.h.0.mlp.c_fc", "transformer.h.1.mlp.c_fc", "transformer.h.1.attn.c_proj"}


class TwoNames(nn.Module):
    """Two layers whose first matrices are one parameter."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)) for _ in range(2))
        self.blocks[1][0].weight = self.blocks[0][0].weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


def test_a_parameter_with_two_names_has_one_mask_and_counts_once():
    model = TwoNames()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    sparsifier = Sparsifier(model, optimizer, config(sparsity=0.5, block=16))
    for step in range(6):
        optimizer.zero_grad()
        model(torch.randn(4, 32, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        sparsifier.step()
        optimizer.step()
        assert_dead_blocks_are_zero(sparsifier)
    masks = sparsifier.masks
    assert masks["blocks.0.0"] is masks["blocks.1.0"]
    assert sparsifier.sparsity_achieved == 0.5
    sparsifier._masks[0] = torch.zeros_like(sparsifier._masks[0])
    # The shared matrix is one of three, not two of four.
    assert sparsifier.sparsity_achieved == pytest.approx((1 + 0.5 + 0.5) / 3)


def test_a_head_tied_to_the_embedding_is_not_pruned_by_mistake():
    with pytest.raises(BlastError, match=r"weight of 'lm_head' is also the weight of 'transformer.wte'"):
        one_shot_masks(tiny_gpt2(), config(targets=["lm_head"]))
