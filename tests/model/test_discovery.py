from __future__ import annotations

import pytest
import torchvision
import transformers
from sparsity_models import tiny_gpt2, tiny_llama, tiny_vit
from torch import nn

from blast.errors import BlastError
from blast.model.discovery import find_mlps, match_matrices, split_dense

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def roles(model: nn.Module, *targets: str) -> dict[str, str]:
    return {target.name: target.role for target in match_matrices(model, targets or ("mlp",))}


def test_a_llama_mlp_is_gate_up_down():
    (first, second) = find_mlps(tiny_llama())
    assert (first.name, first.layer, second.layer) == ("model.layers.0.mlp", 0, 1)
    assert [target.name.rpartition(".")[2] for target in first.targets] == ["gate_proj", "up_proj", "down_proj"]
    assert [target.role for target in first.targets] == ["gate", "up", "down"]
    assert first.up.shape == (128, 64)


def test_a_gpt2_mlp_is_its_conv1d_pair_and_not_the_attention():
    found = match_matrices(tiny_gpt2())
    assert [target.name for target in found] == [
        f"transformer.h.{i}.mlp.{c}" for i in (0, 1) for c in ("c_fc", "c_proj")
    ]
    assert [target.role for target in found] == ["fc1", "fc2"] * 2
    assert all(target.transposed for target in found)
    assert found[0].shape == (256, 64)


def test_a_torchvision_mlp_block_is_found_in_its_sequential():
    found = match_matrices(tiny_vit())
    assert [target.name for target in found[:2]] == [f"encoder.layers.encoder_layer_0.mlp.{i}" for i in (0, 3)]
    assert [(target.role, target.layer) for target in found] == [("fc1", 0), ("fc2", 0), ("fc1", 1), ("fc2", 1)]


def test_the_weight_of_a_conv1d_is_a_writable_view_out_by_in():
    model = tiny_gpt2()
    target = match_matrices(model)[0]
    target.weight[200, 3] = 7.0
    assert model.transformer.h[0].mlp.c_fc.weight[3, 200] == 7.0
    assert target.gradient is None
    target.module.weight.sum().backward()
    assert target.gradient.shape == (256, 64)


@pytest.mark.parametrize(
    ("model", "per_layer"),
    [
        (lambda: transformers.BertModel(transformers.BertConfig(vocab_size=50, **SMALL)), ["fc1", "fc2"]),
        (
            lambda: transformers.Qwen3ForCausalLM(
                transformers.Qwen3Config(vocab_size=50, head_dim=16, num_key_value_heads=1, **SMALL)
            ),
            ["gate", "up", "down"],
        ),
        (
            lambda: transformers.Gemma3ForCausalLM(
                transformers.Gemma3TextConfig(vocab_size=50, head_dim=16, num_key_value_heads=1, **SMALL)
            ),
            ["gate", "up", "down"],
        ),
        (
            lambda: transformers.Phi3ForCausalLM(
                transformers.Phi3Config(vocab_size=50, num_key_value_heads=1, pad_token_id=0, **SMALL)
            ),
            ["up", "down"],
        ),
        (
            lambda: transformers.OPTForCausalLM(
                transformers.OPTConfig(
                    vocab_size=50,
                    hidden_size=32,
                    ffn_dim=64,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    word_embed_proj_dim=32,
                )
            ),
            ["fc1", "fc2"],
        ),
        (lambda: transformers.ViTModel(transformers.ViTConfig(image_size=16, patch_size=8, **SMALL)), ["fc1", "fc2"]),
        (lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 2, 64, batch_first=True), 2), ["fc1", "fc2"]),
    ],
    ids=["bert", "qwen3", "gemma3", "phi3", "opt", "vit-hf", "torch-encoder"],
)
def test_the_mlps_of_a_family_are_found_and_nothing_else(model, per_layer):
    model = model()
    found = match_matrices(model)
    assert [target.role for target in found] == per_layer * 2
    assert [target.layer for target in found] == [0] * len(per_layer) + [1] * len(per_layer)
    assert not any("attn" in t.name or "attention" in t.name or "head" in t.name for t in found)


def test_gate_and_up_stored_as_one_matrix_are_pruned_but_make_no_mlp():
    config = transformers.Phi3Config(vocab_size=50, num_key_value_heads=1, pad_token_id=0, **SMALL)
    assert find_mlps(transformers.Phi3ForCausalLM(config)) == []


def test_an_mlp_with_unknown_names_is_found_by_its_shapes():
    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.open, self.gateway, self.shut = nn.Linear(8, 32), nn.Linear(8, 32), nn.Linear(32, 8)

    (mlp,) = find_mlps(nn.ModuleList([Mine()]))
    assert [target.name for target in mlp.targets] == ["0.gateway", "0.open", "0.shut"]


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 32)),
        nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 10)),
        nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)),
        nn.ModuleDict({"value": nn.Linear(8, 32), "lm_head": nn.Linear(32, 8)}),
        nn.ModuleDict({"c_attn": nn.Linear(8, 24), "c_proj": nn.Linear(8, 8)}),
        nn.MultiheadAttention(8, 2),
        nn.ModuleDict({"down_proj": nn.Linear(32, 8), "up_proj": nn.Linear(8, 32)}),
    ],
    ids=["bottleneck", "classifier", "square", "head", "attention", "packed-attention", "adapter"],
)
def test_modules_that_resemble_an_mlp_are_not_found(module):
    assert find_mlps(nn.ModuleDict({"part": module})) == []


def test_attention_projections_are_found_by_name_and_by_structure():
    assert set(roles(tiny_gpt2(), "attention")) == {
        f"transformer.h.{i}.attn.{c}" for i in (0, 1) for c in ("c_attn", "c_proj")
    }
    mixer = nn.ModuleDict({name: nn.Linear(8, 8) for name in ("q_proj", "k_proj", "v_proj", "o_proj")})
    assert set(roles(nn.ModuleDict({"mixer": mixer}), "attention")) == {f"mixer.{n}" for n in mixer}


def test_several_targets_are_joined_in_the_models_order_without_repeats():
    names = list(roles(tiny_llama(), "*.up_proj", "mlp", r"re:.*0\.self_attn\.[qk]_proj"))
    assert names[:3] == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.self_attn.k_proj",
        "model.layers.0.mlp.gate_proj",
    ]
    assert len(names) == len(set(names)) == 8


@pytest.mark.parametrize(
    ("build", "target", "message"),
    [
        (tiny_vit, "attention", "'attention' matches nothing in this model"),
        (tiny_llama, "*.upproj", "unknown target"),
        (tiny_llama, "mpl", "unknown target 'mpl'; did you mean 'mlp'"),
        (tiny_llama, "re:(", "not a valid regular expression"),
        (lambda: nn.Conv2d(1, 1, 1), "mlp", "no nn.Linear and no Conv1D"),
        (lambda: nn.Linear(8, 8), "mlp", "the model is itself one linear layer"),
    ],
)
def test_a_target_that_matches_nothing_is_refused(build, target, message):
    with pytest.raises(BlastError, match=message):
        match_matrices(build(), [target])


def test_first_and_last_layers_of_each_stack_stay_dense():
    layers = lambda: nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8)) for _ in range(3))  # noqa: E731
    model = nn.ModuleDict({"encoder": layers(), "decoder": layers()})
    pruned, dense = split_dense(match_matrices(model), 1, 1)
    assert {target.layer_path for target in pruned} == {"encoder.1", "decoder.1"}
    assert len(dense) == 8


def test_keeping_every_layer_dense_is_refused():
    with pytest.raises(BlastError, match="dense_first 1 and dense_last 1 leave none of the 2 layers"):
        split_dense(match_matrices(tiny_llama(), "mlp"), 1, 1)


def test_swin_mlps_are_found():
    model = torchvision.models.SwinTransformer([4, 4], 16, [1, 1], [2, 2], [2, 2], num_classes=3)
    assert [target.role for target in match_matrices(model)] == ["fc1", "fc2"] * 2


def test_the_position_bias_of_swin_v2_is_no_mlp():
    block = torchvision.models.swin_transformer.SwinTransformerBlockV2(32, 2, [4, 4], [0, 0])
    assert list(roles(nn.Sequential(block))) == ["0.mlp.0", "0.mlp.3"]


@pytest.mark.parametrize("place", ["input_layernorm", "router"])
def test_a_small_mlp_inside_a_norm_or_a_router_is_not_pruned(place):
    def mlp():
        return nn.ModuleDict({"fc1": nn.Linear(32, 64), "fc2": nn.Linear(64, 32)})

    layer = nn.ModuleDict({place: nn.ModuleDict({"gate": mlp()}), "mlp": mlp()})
    assert list(roles(layer)) == ["mlp.fc1", "mlp.fc2"]
    # The name of a model may end like this too (RoBERTa with norms first).
    model = nn.ModuleDict({"prelayernorm": nn.ModuleDict({"layer": layer})})
    assert list(roles(model)) == ["prelayernorm.layer.mlp.fc1", "prelayernorm.layer.mlp.fc2"]


def test_an_mlp_beside_the_projections_of_a_layer_is_found():
    projections = {name: nn.Linear(32, 32) for name in ("q_proj", "k_proj", "v_proj")}
    layer = nn.ModuleDict({**projections, "mlp": nn.ModuleDict({"fc1": nn.Linear(32, 64), "fc2": nn.Linear(64, 32)})})
    assert list(roles(layer)) == ["mlp.fc1", "mlp.fc2"]
