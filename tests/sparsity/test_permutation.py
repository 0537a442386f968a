"""Hidden units in an order that suits blocks."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from experts_models import build
from torch import nn

import blast
from blast.block_sparse.blocks import BlockShape
from blast.errors import BlastError
from blast.model.discovery import find_mlps
from blast.sparsity.one_shot import one_shot_masks
from blast.sparsity.permutation import permute_hidden_units_

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 40}
BLOCK = BlockShape(8, 8)


def models():
    torch.manual_seed(0)
    gpt2 = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=40, n_positions=16)
    bert = transformers.BertConfig(**SIZES)
    return {
        "gated": transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)),
        "conv1d with biases": transformers.GPT2LMHeadModel(gpt2),
        "pair of modules": transformers.BertForMaskedLM(bert),
    }


def names_of(model):
    return [target.name for mlp in find_mlps(model) for target in mlp.targets]


@pytest.mark.parametrize("kind", ["gated", "conv1d with biases", "pair of modules"])
def test_the_function_does_not_change_and_the_units_do(kind):
    model = models()[kind].double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    before, tokens = copy.deepcopy(model), torch.arange(10)[None]
    orders = permute_hidden_units_(model, names_of(model), BLOCK)
    assert list(orders) == [mlp.name for mlp in find_mlps(model)]
    assert torch.allclose(model(tokens).logits, before(tokens).logits, atol=1e-10)
    for mlp, old in zip(find_mlps(model), find_mlps(before), strict=True):
        order = orders[mlp.name]
        assert order.sort().values.tolist() == list(range(len(order)))
        assert torch.equal(mlp.up.weight, old.up.weight[order])
        assert not torch.equal(mlp.up.weight, old.up.weight)


def test_units_that_belong_together_share_a_block():
    """The matrix was made of blocks, and its hidden units were shuffled: the permutation finds the blocks again."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Sequential(nn.Linear(32, 64, bias=False), nn.GELU(), nn.Linear(64, 32, bias=False)))
    kinds, order = torch.rand(8, 4) < 0.3, torch.randperm(64)
    kinds[torch.arange(8), torch.arange(8) % 4] = True
    with torch.no_grad():
        for weight in (model[0][0].weight, model[0][2].weight.t()):
            weight.mul_(kinds.repeat_interleave(8, 0).repeat_interleave(8, 1)[order])
    filled = lambda: int((model[0][0].weight.view(8, 8, 4, 8) != 0).any(3).any(1).sum())  # noqa: E731
    shuffled = filled()
    permute_hidden_units_(model, ["0.0", "0.2"], BLOCK)
    assert filled() == int(kinds.sum()) < shuffled


def test_one_shot_keeps_more_of_a_permuted_model():
    model = models()["gated"]
    with torch.no_grad():
        for mlp in find_mlps(model):
            strength = torch.rand(64, generator=torch.Generator().manual_seed(0)).pow(4)
            mlp.up.weight.mul_(strength[:, None])
            mlp.down.weight.mul_(strength)
    permuted = copy.deepcopy(model)
    permute_hidden_units_(permuted, names_of(permuted), BLOCK)
    kept = {}
    for name, some in (("as it is", model), ("permuted", permuted)):
        masks = one_shot_masks(some, blast.SparsifyConfig(0.75, 8, steps=1))
        whole = {target.name: target.weight for mlp in find_mlps(some) for target in mlp.targets}
        parts = [
            (whole[key] * mask.repeat_interleave(8, 0).repeat_interleave(8, 1)).square().sum()
            for key, mask in masks.items()
        ]
        kept[name] = sum(parts).item()
    assert kept["permuted"] > 1.2 * kept["as it is"]


def test_an_mlp_whose_units_are_told_apart_stays_as_it_is():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.norm, self.fc2 = nn.Linear(16, 64), nn.LayerNorm(64), nn.Linear(64, 16)

    with pytest.raises(BlastError, match="no MLP of this model can be permuted, because something else reads hidden"):
        permute_hidden_units_(nn.Sequential(Normed()), ["0.fc1", "0.fc2"], BLOCK)


def test_what_has_no_mlp_of_linear_layers_cannot_be_permuted():
    attention = [name for name, _ in models()["gated"].named_modules() if name.endswith("q_proj")]
    experts = ["model.layers.0.mlp.experts.down_proj.0"]
    for model, names in ((models()["gated"], attention), (build("qwen3_moe"), experts)):
        with pytest.raises(BlastError, match="because the targets are no MLPs of linear layers"):
            permute_hidden_units_(model, names, BLOCK)


def test_an_mlp_that_shares_a_layer_with_another_stays_as_it_is():
    model = nn.ModuleList(nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16)) for _ in range(3))
    model[1][0] = model[0][0]
    names = [f"{layer}.{place}" for layer in range(3) for place in (0, 2)]
    with pytest.warns(UserWarning, match="2 of 3 MLPs were not permuted, because something else reads .*: '0', '1'"):
        made = permute_hidden_units_(model, names, BLOCK)
    assert list(made) == ["2"]


def test_a_model_whose_mlps_are_all_pruned_in_part_cannot_be_permuted():
    model = models()["gated"]
    up_alone = [name for name in names_of(model) if name.endswith("up_proj")]
    with pytest.raises(BlastError, match="because only some of the matrices of each are pruned; choose all of them"):
        permute_hidden_units_(model, up_alone, BLOCK)


def test_a_sparsifier_does_not_permute():
    model = models()["gated"]
    config = blast.SparsifyConfig(sparsity=0.5, block=8, steps=10, permute_hidden=True)
    with pytest.raises(BlastError, match="permute_hidden reorders a trained model before one-shot pruning"):
        blast.Sparsifier(model, torch.optim.SGD(model.parameters(), 0.1), config)


def test_an_mlp_that_is_pruned_in_part_stays_as_it_is():
    model = models()["gated"]
    before = copy.deepcopy(model.state_dict())
    names = [name for name in names_of(model) if name != "model.layers.1.mlp.down_proj"]
    with pytest.warns(UserWarning, match="1 of 2 MLPs were not permuted, because only some .*: 'model.layers.1.mlp'"):
        made = permute_hidden_units_(model, names, BLOCK)
    assert list(made) == ["model.layers.0.mlp"]
    assert torch.equal(
        model.state_dict()["model.layers.1.mlp.up_proj.weight"], before["model.layers.1.mlp.up_proj.weight"]
    )
