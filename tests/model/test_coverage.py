"""MLP weights that stay dense are told once, with their share, and are in the report."""

from __future__ import annotations

import warnings

import pytest
import torch
import transformers
from sparsity_models import MODELS, tiny_llama
from torch import nn

import blast
from blast.model.coverage import DenseMlpWeights, dense_mlp_weights, warning_about
from blast.model.discovery import match_matrices
from blast.sparsity.one_shot import one_shot_masks


class Odd(nn.Module):
    """An MLP of four matrices, which no structure describes, beside one that is found."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16))
        self.feed_forward = nn.ModuleList([nn.Linear(16, 32) for _ in range(3)])

    def forward(self, x):
        return self.mlp(x) + sum(layer(x).sum(-1, keepdim=True) for layer in self.feed_forward)


def sparsifier(model: nn.Module, **options) -> blast.Sparsifier:
    options = {"sparsity": 0.5, "block": 8, "steps": 4, **options}
    return blast.Sparsifier(model, torch.optim.SGD(model.parameters(), lr=0.1), blast.SparsifyConfig(**options))


def test_weights_that_no_structure_finds_are_told_with_their_share() -> None:
    model = nn.ModuleList([Odd(), Odd()])
    told = r"^43% of the MLP weights of this model stay dense, .*: '\*\.feed_forward\.\*\.weight'; name"
    with pytest.warns(UserWarning, match=told) as caught:
        made = sparsifier(model)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    report = made.report()["dense_mlp_weights"]
    assert report["share"] == pytest.approx(3 * 16 * 32 / (3 * 16 * 32 + 2 * 16 * 64))
    with pytest.warns(UserWarning, match="feed_forward"):
        one_shot_masks(model, made.config)


@pytest.mark.parametrize(("count", "end"), [(5, "'w3', 'w4';"), (6, "'w3', 'w4' and 1 more;")])
def test_five_names_are_told_and_how_many_more_there_are(count, end) -> None:
    told = warning_about(DenseMlpWeights(0.5, [f"w{place}" for place in range(count)]), Odd())
    assert f"'w0', 'w1', 'w2', {end}" in told


@pytest.mark.parametrize("kind", MODELS)
def test_nothing_is_told_of_models_whose_mlps_are_all_pruned(kind) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = sparsifier(MODELS[kind]())
    assert made.report()["dense_mlp_weights"] == {"share": 0.0, "names": []}


def test_layers_that_the_config_leaves_dense_are_reported_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = sparsifier(tiny_llama(), dense_first=1)
        attention = sparsifier(tiny_llama(), targets=("attention",))
    names = [f"model.layers.*.mlp.{name}_proj.weight" for name in ("gate", "up", "down")]
    assert made.report()["dense_mlp_weights"] == {"share": 0.5, "names": names}
    assert attention.report()["dense_mlp_weights"] == {"share": 1.0, "names": names}


def test_a_shared_expert_alone_is_not_the_whole_mlp() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    experts = {"num_experts": 4, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 64}
    model = transformers.Qwen2MoeForCausalLM(transformers.Qwen2MoeConfig(**sizes, **heads, **experts))
    found = dense_mlp_weights(model, match_matrices(model, "*.shared_expert.*"))
    assert {"model.layers.*.mlp.experts.gate_up_proj", "model.layers.*.mlp.experts.down_proj"} <= set(found.names)
    assert 0.79 < found.share < 0.81
