"""fp8 weights of a fused model: they have the reported error, and only the kernels use them."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from sparse_pairs import BLOCK, masked, random_masks
from torch import nn

import blast
from blast import architectures
from blast.errors import BlastError
from blast.layers.sparse_mlp import SparseMlp

MODELS = ("llama-nano", "gpt2-nano")
VOCABULARY = 512
# A weight is off by up to 1/16, evenly distributed up or down: about 2.5 % in the mean square. Two or three matrices.
EXPECTED = (0.02, 0.07)


def sparse_model(name: str, dtype: torch.dtype = torch.bfloat16, tied: bool = False) -> nn.Module:
    torch.manual_seed(0)
    model = architectures.build(name, vocab_size=VOCABULARY).eval()
    masks = random_masks(model)
    if tied:
        masks = {key: masks[key.replace("up_proj", "gate_proj")] for key in masks}
    return blast.to_sparse(masked(model, masks), masks).to(dtype)


def prompt() -> torch.Tensor:
    return torch.randint(VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(1))


def fused_of(model: nn.Module) -> dict[str, SparseMlp]:
    return {name: module for name, module in model.named_modules() if isinstance(module, SparseMlp)}


def distance(out: torch.Tensor, expected: torch.Tensor) -> float:
    return ((out.float() - expected.float()).norm() / expected.float().norm()).item()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("name", "tied"), [("llama-nano", False), ("llama-nano", True), ("gpt2-nano", False)])
def test_each_mlp_has_the_reported_error(name, tied, dtype) -> None:
    sparse = sparse_model(name, dtype, tied)
    fused = blast.fuse(copy.deepcopy(sparse), weights="fp8")
    errors = blast.quantization_errors(fused)
    assert list(errors) == list(fused_of(fused))
    assert len(errors) == 2
    assert all(mlp.kernel_weights.first.dtype == torch.float8_e4m3fn for mlp in fused_of(fused).values())
    assert all(mlp.kernel_weights.down.dtype == torch.float8_e4m3fn for mlp in fused_of(fused).values())
    x = torch.randn(300, 128, generator=torch.Generator().manual_seed(5)).to(dtype)
    for place, mlp in fused_of(fused).items():
        assert EXPECTED[0] < errors[place] < EXPECTED[1]
        with torch.no_grad():
            off = distance(mlp(x), sparse.get_submodule(place)(x))
        # Other tokens, and half precision's own rounding: within a tenth of what is stated.
        assert off == pytest.approx(errors[place], rel=0.1)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_in_fp8_agrees_within_the_error_of_its_mlps(name) -> None:
    sparse = sparse_model(name)
    fused = blast.fuse(copy.deepcopy(sparse), weights="fp8")
    with torch.no_grad():
        off = distance(fused(prompt()).logits, sparse(prompt()).logits)
    # Errors of the layers add up like independent ones at most, and the residual stream makes less of them.
    assert 0 < off < math.hypot(*blast.quantization_errors(fused).values()) + 5e-3


@pytest.mark.parametrize("name", MODELS)
def test_a_model_in_fp8_generates(name) -> None:
    model = blast.fuse(sparse_model(name), weights="fp8")
    tokens = model.generate(
        prompt(), attention_mask=torch.ones_like(prompt()), max_new_tokens=5, do_sample=False, pad_token_id=0,
        eos_token_id=None,
    )  # fmt: skip
    assert tokens.shape == (2, 17)
    assert torch.equal(tokens[:, :12], prompt())


@pytest.mark.parametrize("name", MODELS)
def test_state_dict_checkpoint_and_unfused_model_hold_the_rounded_weights(name, tmp_path) -> None:
    sparse = sparse_model(name)
    before = {key: value.clone() for key, value in sparse.state_dict().items()}
    modules = {place: id(module) for place, module in sparse.named_modules()}
    fused = blast.fuse(sparse, weights="fp8")
    state = {key: value.clone() for key, value in fused.state_dict().items()}
    assert list(state) == list(before)
    for key, value in before.items():
        if key.endswith("values"):
            assert 0 < distance(state[key], value) < EXPECTED[1]
        else:
            assert torch.equal(state[key], value)
    with pytest.raises(BlastError, match=r"^the weights of '.*' are in fp8; call blast.unfuse\(model\) before saving"):
        blast.save(fused, tmp_path / "fused")
    restored = blast.unfuse(fused)
    blast.save(restored, tmp_path / "unfused")
    loaded = blast.load(tmp_path / "unfused")
    assert {place: id(module) for place, module in restored.named_modules()} == modules
    assert all(torch.equal(value, state[key]) for key, value in restored.state_dict().items())
    assert all(value.requires_grad for value in restored.parameters())
    with torch.no_grad():
        assert torch.equal(loaded.eval()(prompt()).logits, restored(prompt()).logits)


def test_the_input_has_its_gradient_but_training_is_refused() -> None:
    fused = blast.fuse(sparse_model("llama-nano"), weights="fp8")
    mlp = next(iter(fused_of(fused).values()))
    x = torch.randn(64, 128, generator=torch.Generator().manual_seed(0), dtype=torch.bfloat16, requires_grad=True)
    expected = mlp.original.forward(x)
    out = mlp(x)
    assert distance(out, expected) < 1e-2
    found, wanted = (torch.autograd.grad(y.float().sum(), x)[0] for y in (out, expected))
    assert distance(found, wanted) < 1e-2
    assert not [name for name, _ in fused.named_parameters() if name.endswith("values")]
    with pytest.raises(BlastError, match=r"^fp8 weights cannot be trained; call blast.unfuse\(model\)"):
        fused.train()(prompt())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["eager", "compiled"])
@pytest.mark.parametrize("assign", [False, True])
def test_a_loaded_state_dict_is_quantised_as_before_fusing(assign, compiled, tied) -> None:
    model = blast.fuse(sparse_model("llama-nano", tied=tied), weights="fp8")
    sparse = sparse_model("llama-nano", tied=tied)
    run = torch.compile(model, backend="aot_eager") if compiled else model
    with torch.no_grad():
        before = run(prompt()).logits
        for name, parameter in sparse.named_parameters():
            if name.endswith("values"):
                parameter.mul_(1 + torch.rand_like(parameter))
        model.load_state_dict(sparse.state_dict(), assign=assign)
        now = run(prompt()).logits
        again = blast.fuse(copy.deepcopy(sparse), weights="fp8")
        expected = again(prompt()).logits
    assert not torch.equal(now, before)
    assert distance(now, expected) < (1e-2 if compiled else 1e-9)
    assert blast.quantization_errors(model) == blast.quantization_errors(again)
    for left, right in zip(fused_of(model).values(), fused_of(again).values(), strict=True):
        weights = zip(left.kernel_weights, right.kernel_weights, strict=True)
        assert all(torch.equal(a.float(), b.float()) for a, b in weights if a is not None)


def test_no_write_reaches_the_weights_but_a_state_dict() -> None:
    sparse = sparse_model("gpt2-nano")
    old = [parameter for name, parameter in sparse.named_parameters() if name.endswith("values")]
    model = blast.fuse(sparse, weights="fp8")
    layer = next(iter(fused_of(model).values())).layers[0]
    with torch.no_grad():
        before = model(prompt()).logits
        for values in (*old, layer.values):
            values.data.mul_(2)
        assert torch.equal(model(prompt()).logits, before)
        assert torch.equal(blast.unfuse(model).eval()(prompt()).logits, blast.unfuse(model)(prompt()).logits)
    blast.fuse(model, weights="fp8")
    for new in (torch.zeros_like(layer.values), nn.Parameter(torch.zeros_like(layer.values))):
        with pytest.raises((AttributeError, KeyError)):
            layer.values = new


def test_a_state_dict_without_its_values_is_refused() -> None:
    model = blast.fuse(sparse_model("gpt2-nano"), weights="fp8")
    state = model.state_dict()
    del state["transformer.h.0.mlp.c_fc.values"]
    with pytest.raises(RuntimeError, match=r"Missing key.*transformer\.h\.0\.mlp\.c_fc\.values"):
        model.load_state_dict(state)
    assert model.load_state_dict(state, strict=False).missing_keys == ["transformer.h.0.mlp.c_fc.values"]


def test_a_layer_that_is_loaded_alone_is_quantised_before_it_is_used() -> None:
    model = blast.fuse(sparse_model("llama-nano", tied=True), weights="fp8")
    mlp = next(iter(fused_of(model).values()))
    x = torch.randn(5, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    state = {key: value * 3 if key == "values" else value for key, value in mlp.layers[0].state_dict().items()}
    with torch.no_grad():
        before = mlp(x)
        mlp.layers[0].load_state_dict(state)
        now = mlp(x)
        assert not torch.equal(now, before)
        assert distance(now, mlp.original.forward(x)) < 1e-2
    assert mlp.layers[0].loaded is None


def test_a_load_writes_in_place_so_that_a_captured_cuda_graph_stays_right() -> None:
    model = blast.fuse(sparse_model("llama-nano"), weights="fp8")
    mlp = next(iter(fused_of(model).values()))
    before = [tensor.data_ptr() for tensor in mlp.extra_tensors]
    model.load_state_dict({k: 2 * v if k.endswith("values") else v for k, v in model.state_dict().items()})
    assert [tensor.data_ptr() for tensor in mlp.extra_tensors] == before


def test_a_cast_keeps_the_rounded_weights() -> None:
    model = blast.fuse(sparse_model("llama-nano"), weights="fp8")
    errors, blocks = blast.quantization_errors(model), [m.layers[0].values for m in fused_of(model).values()]
    model.float()
    with torch.no_grad():
        expected = blast.unfuse(copy.deepcopy(model))(prompt()).logits
        torch.testing.assert_close(model(prompt()).logits, expected, rtol=1e-4, atol=1e-5)
    assert all(mlp.kernel_weights.first.dtype == torch.float32 for mlp in fused_of(model).values())
    assert blast.quantization_errors(model.bfloat16()) == errors
    for before, mlp in zip(blocks, fused_of(model).values(), strict=True):
        assert mlp.kernel_weights.first.dtype == torch.float8_e4m3fn
        assert torch.equal(before, mlp.layers[0].values)


def test_fusing_again_changes_the_storage_of_the_weights() -> None:
    model = blast.fuse(sparse_model("llama-nano"))
    assert set(blast.quantization_errors(model).values()) == {0.0}
    places = list(fused_of(model))
    blast.fuse(model, weights="fp8")
    assert list(fused_of(model)) == places
    assert min(blast.quantization_errors(model).values()) > EXPECTED[0]
    blast.fuse(model)
    assert all(mlp.kernel_weights.first is mlp.layers[0].values for mlp in fused_of(model).values())
    assert not any(isinstance(mlp.original, SparseMlp) for mlp in fused_of(model).values())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_fp8_weights_take_a_byte_a_weight_and_four_a_block(name) -> None:
    sparse = sparse_model(name)
    before = blast.model_bytes(sparse)
    fused = blast.fuse(sparse, skip_dead=False, weights="fp8")
    layers = [layer for mlp in fused_of(fused).values() for layer in mlp.layers]
    row_lists = sum(4 * t.numel() for mlp in fused_of(fused).values() for t in mlp.row_lists[:2])
    weights = sum(layer.values.numel() for layer in layers)
    held = blast.model_bytes(fused).weights - before.weights + 2 * weights
    assert held == weights + 4 * weights // BLOCK**2 + row_lists


def test_a_model_in_fp8_is_one_graph_for_the_compiler() -> None:
    model = blast.fuse(sparse_model("llama-nano"), weights="fp8")
    with torch.no_grad():
        expected = model(prompt()).logits
        compiled = torch.compile(lambda x: model(x).logits, fullgraph=True, backend="aot_eager")
        assert distance(compiled(prompt()), expected) < 1e-2


def test_fp8_weights_can_be_copied() -> None:
    model = blast.fuse(sparse_model("gpt2-nano"), weights="fp8")
    copied = copy.deepcopy(model)
    with torch.no_grad():
        assert torch.equal(copied(prompt()).logits, model(prompt()).logits)
    assert blast.quantization_errors(copied) == blast.quantization_errors(model)


@pytest.mark.parametrize(
    ("dtype", "weights", "message"),
    [
        (torch.bfloat16, "fp4", r"^unknown form of weights 'fp4'; did you mean 'fp8'\?$"),
        (torch.float32, "fp8", r"float16 or bfloat16, but 'model.layers.0.mlp' is float32; .*model.bfloat16\(\)\.$"),
    ],
)
def test_unsupported_fp8_is_refused_in_one_sentence_and_changes_nothing(dtype, weights, message) -> None:
    model = sparse_model("llama-nano", dtype)
    with pytest.raises(BlastError, match=message) as caught:
        blast.fuse(model, weights=weights)
    assert "\n" not in str(caught.value)
    assert not fused_of(model)
