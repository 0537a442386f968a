"""A layer that is more than weight and bias is refused by name before training; never pruned halfway or left out."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import transformers
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import blast
from blast.errors import BlastError
from blast.model.discovery import find_mlps
from blast.sparsity.one_shot import apply_masks_, one_shot_masks

CONFIG = blast.SparsifyConfig(0.5, 8, steps=4, update_every=1)


def mlps() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16)) for _ in range(2)))


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class StoresMore(nn.Linear):
    def get_extra_state(self):
        return "more"

    def set_extra_state(self, state):
        pass


class Tagged(nn.Parameter):
    pass


def with_weight(weight: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(64, 16)
    layer._parameters["weight"] = weight
    return layer


def changed(change) -> nn.Linear:
    layer = nn.Linear(64, 16)
    change(layer)
    return layer


def old_weight_norm(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but still in use
        nn.utils.weight_norm(layer)


def lora(layer):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["layer"], r=2)
    return peft.get_peft_model(nn.ModuleDict({"layer": layer}), config).base_model.model["layer"]


INELIGIBLE = {
    "weight-norm": (lambda: changed(parametrizations.weight_norm), "a parametrization computes its 'weight'"),
    "spectral-norm": (lambda: changed(parametrizations.spectral_norm), "a parametrization computes its 'weight'"),
    "parametrized-bias": (
        lambda: changed(lambda layer: parametrize.register_parametrization(layer, "bias", nn.Identity())),
        "a parametrization computes its 'bias'",
    ),
    "old-weight-norm": (lambda: changed(old_weight_norm), "its weight is computed from 'bias', 'weight_g', 'weight_v'"),
    "pruned": (
        lambda: changed(lambda layer: prune.l1_unstructured(layer, "weight", 0.5)),
        "its weight is computed from 'bias', 'weight_orig'",
    ),
    "int8": (lambda: with_weight(nn.Parameter(torch.zeros(16, 64, dtype=torch.int8), False)), "quantised .*int8"),
    "packed": (lambda: with_weight(nn.Parameter(torch.zeros(512, 1, dtype=torch.uint8), False)), "quantised .*uint8"),
    "fp8": (lambda: with_weight(nn.Parameter(torch.zeros(16, 64).to(torch.float8_e4m3fn), False)), "float8_e4m3fn"),
    "complex": (lambda: nn.Linear(64, 16, dtype=torch.complex64), "not real .complex64"),
    "subclass-of-tensor": (lambda: with_weight(Tagged(torch.zeros(16, 64))), "a tensor of the class Tagged"),
    "partitioned": (lambda: with_weight(nn.Parameter(torch.zeros(0))), r"its weight is \[0\]"),
    "lazy": (lambda: lazy(), "its weight has no shape yet; run the model once"),
    "meta": (lambda: nn.Linear(64, 16, device="meta"), "its weight is on the meta device"),
    "own-forward": (lambda: Scaled(64, 16), "its class Scaled has a forward of its own"),
    "instance-forward": (lambda: changed(lambda layer: setattr(layer, "forward", abs)), "its forward was replaced"),
    "buffer": (lambda: changed(lambda m: m.register_buffer("scale", torch.ones(1))), "a buffer 'scale'"),
    "parameter": (lambda: changed(lambda m: setattr(m, "lora_A", nn.Parameter(torch.ones(1)))), "parameter 'lora_A'"),
    "child": (lambda: changed(lambda m: m.add_module("observer", nn.Identity())), "a module 'observer'"),
    "extra-state": (lambda: StoresMore(64, 16), "its own way to save the state"),
    "state-hook": (
        lambda: changed(lambda m: m.register_state_dict_post_hook(lambda *_: None)),
        "a hook changes its state dict; remove that hook",
    ),
    "lora": (lambda: lora(nn.Linear(64, 16)), "it is an adapter"),
}


def lazy() -> nn.Linear:
    layer = nn.LazyLinear(16)
    layer.in_features = 64
    return layer


@pytest.mark.parametrize("kind", INELIGIBLE)
def test_an_ineligible_layer_is_refused_by_name_before_training(kind) -> None:
    build, cause = INELIGIBLE[kind]
    model = mlps()
    model[0][2] = build()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.is_floating_point()], lr=0.1)
    before = {name: copy.deepcopy(p) for name, p in model[1].named_parameters()}
    for prepare in (
        lambda: blast.Sparsifier(model, optimizer, CONFIG),
        lambda: one_shot_masks(model, CONFIG),
        lambda: one_shot_masks(model, blast.SparsifyConfig(0.5, 8, steps=4, targets=["0.2"])),
    ):
        with pytest.raises(BlastError, match=rf"^'0\.2' \(\w+\) cannot be made block-sparse because .*{cause}"):
            prepare()
    if kind != "meta":
        masks = {"1.0": torch.ones(8, 2, dtype=torch.bool), "0.2": torch.ones(2, 8, dtype=torch.bool)}
        with pytest.raises(BlastError, match=rf"^'0\.2' \(\w+\) .*{cause}.*leave it out of the masks\.$"):
            blast.to_sparse(model, masks)
        assert type(model[1][0]) is nn.Linear
    assert all(torch.equal(p, before[name]) for name, p in model[1].named_parameters())


def test_layers_left_out_by_the_config_may_be_of_any_kind() -> None:
    model = mlps()
    model[0][2] = Scaled(64, 16)
    assert set(one_shot_masks(model, blast.SparsifyConfig(0.5, 8, steps=4, dense_first=1))) == {"1.0", "1.2"}
    assert set(one_shot_masks(model, blast.SparsifyConfig(0.5, 8, steps=4, targets=["1.*"]))) == {"1.0", "1.2"}


def test_a_sparse_model_is_refused_with_what_to_do() -> None:
    model = mlps()
    blast.to_sparse(model, {"0.0": torch.ones(8, 2, dtype=torch.bool)})
    with pytest.raises(BlastError, match=r"'0\.0' .*block-sparse.*; call blast.to_dense\(model\) first"):
        one_shot_masks(model, CONFIG)


def test_an_offloaded_model_is_refused_by_name() -> None:
    accelerate = pytest.importorskip("accelerate")
    model = accelerate.cpu_offload(mlps(), execution_device=torch.device("cpu"))
    with pytest.raises(BlastError, match=r"'0.0' \(Linear\) cannot be made block-sparse because .*offload"):
        one_shot_masks(model, CONFIG)


def test_an_attention_that_reads_its_weight_is_refused_by_name() -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "up": nn.Linear(8, 8)})
    with pytest.raises(BlastError, match=r"'attention.out_proj' .* torch.nn.MultiheadAttention reads its weight"):
        one_shot_masks(model, blast.SparsifyConfig(0.5, 4, steps=4, targets=["*"]))


def test_an_adapted_mlp_is_found_and_refused() -> None:
    peft = pytest.importorskip("peft")
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=32
    )
    model = peft.get_peft_model(transformers.LlamaForCausalLM(config), peft.LoraConfig(target_modules=["up_proj"], r=2))
    assert len(find_mlps(model)) == 1
    with pytest.raises(BlastError, match=r"mlp.up_proj' \(Linear\) cannot be made .* because it is an adapter"):
        one_shot_masks(model, CONFIG)


def test_the_linear_layers_of_falcon_are_taken_and_compute_the_same() -> None:
    torch.manual_seed(0)
    config = transformers.FalconConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=32)
    model = transformers.FalconForCausalLM(config).eval()
    masks, ids = one_shot_masks(model, CONFIG), torch.arange(3, 11)[None]
    apply_masks_(model, masks, 8)
    with torch.no_grad():
        expected = model(ids).logits
        torch.testing.assert_close(blast.to_sparse(model, masks)(ids).logits, expected)
        torch.testing.assert_close(blast.fuse(model)(ids).logits, expected)
        back = blast.to_dense(model)
        assert torch.equal(back(ids).logits, expected)
    assert type(back.transformer.h[0].mlp.dense_h_to_4h).__name__ == "FalconLinear"
