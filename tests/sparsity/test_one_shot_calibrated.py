"""One-shot pruning that looks at activations."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers

import blast
from blast.errors import BlastError
from blast.sparsity import one_shot_calibrated
from blast.sparsity.mask_groups import find_mask_groups
from blast.sparsity.one_shot import apply_masks_, one_shot_masks
from blast.sparsity.one_shot_calibrated import prune_once_

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64}


@pytest.fixture(scope="module")
def model():
    """A model with a few strong channels, as trained ones have."""
    torch.manual_seed(0)
    made = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 2:
                parameter.mul_(3)
        for layer in made.model.layers:
            layer.post_attention_layernorm.weight.copy_(torch.rand(32).pow(4) * 8)
    return made


@pytest.fixture(scope="module")
def batches():
    return [torch.randint(0, 64, (8, 16), generator=torch.Generator().manual_seed(seed)) for seed in range(4)]


def forward(model, tokens):
    return model(tokens).logits


def config(**settings):
    return blast.SparsifyConfig(**{"sparsity": 0.5, "block": 8, "steps": 1, **settings})


def damage(model, pruned):
    tokens = torch.randint(0, 64, (16, 16), generator=torch.Generator().manual_seed(99))
    with torch.no_grad():
        return (forward(pruned, tokens) - forward(model, tokens)).square().mean().item()


def test_activations_help_and_compensation_helps_more(model, batches):
    found = {}
    for score in ("magnitude", "wanda", "obs"):
        pruned = copy.deepcopy(model)
        masks = prune_once_(pruned, config(keep_score=score), batches, forward)
        assert len(masks) == 6
        for name, mask in masks.items():
            assert int(mask.sum()) == mask.numel() // 2
            weight = pruned.get_submodule(name).weight
            dead = ~mask.repeat_interleave(8, 0).repeat_interleave(8, 1)
            assert weight[dead].count_nonzero() == 0
        blast.to_sparse(copy.deepcopy(pruned), masks)
        found[score] = damage(model, pruned)
    assert found["obs"] < 0.9 * found["wanda"] < 0.9 * found["magnitude"]


def test_without_activations_it_is_the_one_shot_of_before(model):
    pruned, by_hand = copy.deepcopy(model), copy.deepcopy(model)
    masks = prune_once_(pruned, config())
    expected = one_shot_masks(by_hand, config())
    apply_masks_(by_hand, expected, 8)
    assert masks.keys() == expected.keys()
    assert all(torch.equal(masks[name], expected[name]) for name in masks)
    assert all(torch.equal(a, b) for a, b in zip(pruned.parameters(), by_hand.parameters(), strict=True))


def test_a_wanda_score_is_that_of_its_definition(model, batches):
    masks = prune_once_(copy.deepcopy(model), config(keep_score="wanda", targets="*.0.mlp.up_proj"), batches, forward)
    inputs = []
    layer = model.model.layers[0].mlp.up_proj
    handle = layer.register_forward_pre_hook(lambda _, x: inputs.append(x[0]))
    with torch.no_grad():
        for batch in batches:
            forward(model, batch)
    handle.remove()
    moment = torch.cat([x.flatten(0, 1) for x in inputs]).square().mean(0)
    score = (layer.weight.square() * moment).view(8, 8, 4, 8).sum((1, 3)).flatten()
    expected = torch.zeros(32, dtype=torch.bool)
    expected[score.argsort(descending=True)[:16]] = True
    assert torch.equal(masks["model.layers.0.mlp.up_proj"], expected.view(8, 4))


def test_a_cost_that_rounding_made_negative_is_zero(model, monkeypatch):
    costs = torch.tensor([-1e-9, 4.0]).repeat(8, 2)
    monkeypatch.setattr(one_shot_calibrated, "block_saliency", lambda *_: costs)
    settings = config(keep_score="obs", targets="*.0.mlp.up_proj")
    groups, _ = find_mask_groups(model, settings)
    moments = {"model.layers.0.mlp.up_proj": torch.eye(32)}
    (scores,) = one_shot_calibrated._calibrated_scores(groups, settings, moments)
    assert torch.equal(scores, torch.tensor([0.0, 2.0]).repeat(8, 2))


def test_a_shared_mask_and_a_permutation_work_with_every_score(model, batches):
    for score in ("magnitude", "wanda", "obs"):
        pruned = copy.deepcopy(model)
        settings = config(keep_score=score, tie_gate_up=True, permute_hidden=True, ranking="model")
        masks = prune_once_(pruned, settings, batches, forward)
        for layer in range(2):
            mlp = f"model.layers.{layer}.mlp"
            assert torch.equal(masks[f"{mlp}.gate_proj"], masks[f"{mlp}.up_proj"])
        assert damage(model, pruned) < damage(model, torch.nn.Module.float(_without_mlps(model)))


def _without_mlps(model):
    empty = copy.deepcopy(model)
    for layer in empty.model.layers:
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    return empty


def test_a_calibration_that_is_missing_is_refused(model):
    with pytest.raises(BlastError, match="the keep score 'obs' needs inputs of the model; give batches"):
        prune_once_(copy.deepcopy(model), config(keep_score="obs"))
