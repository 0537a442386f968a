"""A loaded model equals the saved one; a model that does not fit is refused in one sentence."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from model_families import build, output
from safetensors import safe_open
from sparse_pairs import Plain, inputs_of, masked, output_of, pair, plain, random_masks
from sparsity_models import MODELS, tiny_gpt2, tiny_llama, tiny_vit
from torch import nn

import blast
from blast.checkpoint.builders import describe, skeleton
from blast.checkpoint.manifest import MANIFEST, WEIGHTS
from blast.errors import BlastError
from blast.model.convert import to_dense, to_sparse
from blast.model.module_replacement import sparse_layers

every_model = pytest.mark.parametrize("kind", sorted(MODELS))


@every_model
@pytest.mark.parametrize("state", ["sparse", "dense"])
def test_a_loaded_model_is_the_saved_one(kind: str, state: str, tmp_path: Path) -> None:
    dense, sparse, _ = pair(kind)
    model = (sparse if state == "sparse" else dense).train()
    digest = blast.save(model, tmp_path / "model")
    loaded = blast.load(tmp_path / "model")
    assert type(loaded) is type(model)
    assert not any(module.training for module in loaded.modules())
    expected = model.state_dict()
    assert list(loaded.state_dict()) == list(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    assert torch.equal(output_of(loaded, inputs_of(kind)), output_of(model.eval(), inputs_of(kind)))
    assert blast.model_bytes(loaded) == blast.model_bytes(model)
    assert blast.save(loaded, tmp_path / "again") == digest


@every_model
def test_a_loaded_sparse_model_becomes_the_masked_dense_one_bit_by_bit(kind: str, tmp_path: Path) -> None:
    dense, sparse, _ = pair(kind)
    blast.save(sparse, tmp_path / "model")
    back, expected = to_dense(blast.load(tmp_path / "model")), dense.state_dict()
    assert [type(module) for module in back.modules()] == [type(module) for module in dense.modules()]
    assert all(torch.equal(tensor, expected[name]) for name, tensor in back.state_dict().items())


@every_model
def test_no_dense_matrix_is_made_while_loading(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, sparse, masks = pair(kind)
    blast.save(sparse, tmp_path / "model")
    monkeypatch.setattr(nn.Module, "load_state_dict", lambda *_, **__: pytest.fail("loads through dense weights"))
    built = skeleton(describe(sparse))
    assert all(parameter.is_meta for parameter in built.parameters())
    loaded = blast.load(tmp_path / "model")
    assert sparse_layers(loaded).keys() == masks.keys()
    assert not any(tensor.is_meta for tensor in [*loaded.parameters(), *loaded.buffers()])
    dense_shapes = {(layer.out_features, layer.in_features) for layer in sparse_layers(loaded).values()}
    tensors = [t for layer in sparse_layers(loaded).values() for t in (*layer.parameters(), *layer.buffers())]
    assert not dense_shapes & {tuple(tensor.shape) for tensor in tensors}
    assert all(layer._template._parameters["weight"] is None for layer in sparse_layers(loaded).values())


def test_tied_weights_and_shared_masks_are_stored_once_and_shared_again(tmp_path: Path) -> None:
    _, gpt2, _ = pair("gpt2")
    blast.save(gpt2, tmp_path / "gpt2")
    names = set(safe_open(tmp_path / "gpt2" / WEIGHTS, "pt").keys())
    assert len({"lm_head.weight", "transformer.wte.weight"} & names) == 1
    loaded = blast.load(tmp_path / "gpt2")
    assert loaded.lm_head.weight is loaded.transformer.wte.weight

    llama = tiny_llama()
    masks = random_masks(llama)
    for layer in range(2):
        masks[f"model.layers.{layer}.mlp.up_proj"] = masks[f"model.layers.{layer}.mlp.gate_proj"]
    blast.save(to_sparse(llama, masks, drop=True), tmp_path / "llama")
    names = set(safe_open(tmp_path / "llama" / WEIGHTS, "pt").keys())
    up = "model.layers.0.mlp.up_proj"
    assert f"{up}.values" in names
    assert f"{up}.col_indices" not in names
    mlp = blast.load(tmp_path / "llama").model.layers[0].mlp
    assert mlp.gate_proj.index is mlp.up_proj.index


def test_names_in_the_file_are_the_models_own(tmp_path: Path) -> None:
    dense, sparse, masks = pair("gpt2")
    blast.save(sparse, tmp_path / "model")
    names = set(safe_open(tmp_path / "model" / WEIGHTS, "pt").keys()) | {"lm_head.weight"}
    expected = dense.state_dict().keys() - {f"{name}.weight" for name in masks}
    expected |= {f"{name}.{part}" for name in masks for part in ("values", "row_offsets", "col_indices")}
    assert names == expected
    facts = json.loads((tmp_path / "model" / MANIFEST).read_text())["matrices"]["transformer.h.0.mlp.c_fc"]
    mask = masks["transformer.h.0.mlp.c_fc"]
    assert facts == {
        "shape": [256, 64], "block": [16, 16], "blocks": 64, "live": int(mask.sum()), "transposed": True
    }  # fmt: skip


def test_a_model_cast_to_bfloat16_loads_with_its_rotary_table(tmp_path: Path) -> None:
    _, sparse, _ = pair("llama")
    sparse.to(torch.bfloat16)
    blast.save(sparse, tmp_path / "model")
    loaded = blast.load(tmp_path / "model")
    assert loaded.model.rotary_emb.inv_freq.dtype == torch.bfloat16
    assert torch.equal(output_of(loaded, inputs_of("llama")), output_of(sparse, inputs_of("llama")))


def test_settings_of_generation_and_attention_are_restored(tmp_path: Path) -> None:
    model = tiny_gpt2()
    model.generation_config.max_new_tokens = 5
    model.set_attn_implementation("eager")
    blast.save(model, tmp_path / "model")
    loaded = blast.load(tmp_path / "model")
    assert loaded.generation_config.max_new_tokens == 5
    assert loaded.config._attn_implementation == "eager"


def test_a_vision_transformer_with_other_channels_head_and_epsilon_is_described(tmp_path: Path) -> None:
    model = tiny_vit()
    model.conv_proj = nn.Conv2d(1, 64, kernel_size=8, stride=8)
    model.heads.head = nn.Linear(64, 7)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-3
    blast.save(to_sparse(model, random_masks(model), drop=True), tmp_path / "model")
    images = torch.randn(2, 1, 16, 16)
    assert torch.equal(blast.load(tmp_path / "model")(images), model.eval()(images))


@every_model
def test_loading_does_not_change_the_random_state(kind: str, tmp_path: Path) -> None:
    _, sparse, _ = pair(kind)
    blast.save(sparse, tmp_path / "model")
    state = torch.get_rng_state()
    blast.load(tmp_path / "model")
    assert torch.equal(torch.get_rng_state(), state)


def test_a_loaded_sparse_model_refuses_save_pretrained(tmp_path: Path) -> None:
    blast.save(pair("llama")[1], tmp_path / "model")
    with pytest.raises(BlastError, match="save_pretrained cannot store block-sparse weights"):
        blast.load(tmp_path / "model").save_pretrained(tmp_path / "other")


def test_other_classes_are_loaded_into_a_model_that_is_given(tmp_path: Path) -> None:
    model = plain()
    blast.save(model, tmp_path / "model")
    with pytest.raises(BlastError, match=r"holds a Plain .*, a class that blast cannot build; .* model=\.\.\."):
        blast.load(tmp_path / "model")
    given = Plain()
    given.up.weight.requires_grad_(False)
    given.count.zero_()
    loaded = blast.load(tmp_path / "model", model=given)
    assert loaded is given
    assert (given.up.values.requires_grad, given.down.values.requires_grad) == (False, True)
    assert torch.equal(loaded(torch.ones(2, 8)), model(torch.ones(2, 8)))
    assert loaded.count == 3


def test_a_known_class_that_was_altered_needs_its_model(tmp_path: Path) -> None:
    model = tiny_vit()
    model.extra = nn.Linear(3, 3)
    blast.save(model, tmp_path / "model")
    with pytest.raises(BlastError, match="a class that blast cannot build"):
        blast.load(tmp_path / "model")


def test_a_given_model_that_does_not_fit_is_refused_and_not_changed(tmp_path: Path) -> None:
    blast.save(plain(), tmp_path / "model")
    wide = Plain(width=64)
    before = copy.deepcopy(wide.state_dict())
    with pytest.raises(BlastError, match="has a block-sparse 'up' of 32 x 8, where the model has no dense linear"):
        blast.load(tmp_path / "model", model=wide)
    assert all(torch.equal(tensor, before[name]) for name, tensor in wide.state_dict().items())
    more = Plain()
    more.other = nn.Linear(2, 2)
    with pytest.raises(BlastError, match=r"'other.bias' is only in the model"):
        blast.load(tmp_path / "model", model=more)
    bent = Plain()
    bent.down.bias = nn.Parameter(torch.zeros(9))
    with pytest.raises(BlastError, match=r"'down.bias' is \[8\] in .* and \[9\] in the model"):
        blast.load(tmp_path / "model", model=bent)
    with pytest.raises(BlastError, match=r"'up' .* is already block-sparse; call blast.to_dense\(model\) first"):
        blast.load(tmp_path / "model", model=plain())


def test_a_compiled_model_is_saved_under_the_names_of_the_model(tmp_path: Path) -> None:
    _, sparse, _ = pair("vit")
    blast.save(torch.compile(sparse, backend="eager"), tmp_path / "model")
    assert torch.equal(blast.load(tmp_path / "model")(inputs_of("vit")), sparse(inputs_of("vit")))


def test_a_saved_model_trains_on(tmp_path: Path) -> None:
    dense, _, _ = pair("vit")
    masks = random_masks(dense)
    blast.save(to_sparse(masked(dense, masks), masks), tmp_path / "model")
    loaded = blast.load(tmp_path / "model").train()
    optimizer = torch.optim.AdamW(loaded.parameters(), lr=1e-2)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(loaded(inputs_of("vit")), torch.tensor([1, 2]))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_a_config_with_an_infinite_number_is_saved_and_loaded(tmp_path: Path) -> None:
    model = build("bamba")
    assert model.config.time_step_limit[1] == float("inf")
    blast.save(model, tmp_path / "model")
    loaded = blast.load(tmp_path / "model")
    assert loaded.config.time_step_limit[1] == float("inf")
    assert torch.equal(output("bamba", loaded), output("bamba", model))
