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
        assert mlp.quantization_error(x) == pytest.approx(off, rel=0.03)


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
def test_state_dict_checkpoint_and_unfused_model_are_those_of_the_sparse_model(name, tmp_path) -> None:
    sparse = sparse_model(name)
    digest = blast.save(sparse, tmp_path / "sparse")
    before = {key: value.clone() for key, value in sparse.state_dict().items()}
    modules = {place: id(module) for place, module in sparse.named_modules()}
    with torch.no_grad():
        expected = sparse(prompt()).logits
    fused = blast.fuse(sparse, weights="fp8")
    state = fused.state_dict()
    assert list(state) == list(before)
    assert all(torch.equal(state[key], before[key]) for key in before)
    assert blast.save(fused, tmp_path / "fused") == digest
    loaded = blast.load(tmp_path / "fused")
    assert not fused_of(loaded)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(prompt()).logits, expected)
        restored = blast.unfuse(fused)
        assert torch.equal(restored(prompt()).logits, expected)
    assert {place: id(module) for place, module in restored.named_modules()} == modules


def test_training_uses_the_unquantised_weights() -> None:
    sparse = sparse_model("llama-nano")
    fused = blast.fuse(copy.deepcopy(sparse), weights="fp8")
    mlp = next(iter(fused_of(fused).values()))
    x = torch.randn(64, 128, generator=torch.Generator().manual_seed(0), dtype=torch.bfloat16)
    # The operator reads the blocks themselves: bit for bit what it gives without any fp8 copy, and not what that gives.
    assert torch.equal(mlp(x), next(iter(fused_of(blast.fuse(sparse)).values()))(x))
    with torch.no_grad():
        assert not torch.equal(mlp(x), blast.unfuse(sparse).model.layers[0].mlp(x))
    fused(prompt()).logits.float().sum().backward()
    assert all(layer.values.grad is not None for mlp in fused_of(fused).values() for layer in mlp.layers)


def test_weights_changed_after_fusing_are_quantised_again() -> None:
    model = blast.fuse(sparse_model("gpt2-nano"), weights="fp8")
    mlp = next(iter(fused_of(model).values()))
    before = mlp.kernel_weights.first_scales.clone()
    with torch.no_grad():
        for layer in mlp.layers:
            layer.values.mul_(4)
    assert mlp.row_lists is not None
    assert torch.equal(mlp.kernel_weights.first_scales, 4 * before)
    assert EXPECTED[0] < mlp.quantization_error() < EXPECTED[1]


def test_a_model_cast_to_float32_runs_unquantised_and_reports_no_error() -> None:
    sparse = sparse_model("llama-nano")
    model = blast.fuse(copy.deepcopy(sparse), weights="fp8").float()
    assert set(blast.quantization_errors(model).values()) == {0.0}
    with torch.no_grad():
        torch.testing.assert_close(model(prompt()).logits, sparse.float()(prompt()).logits, rtol=1e-4, atol=1e-5)
    assert min(blast.quantization_errors(model.half()).values()) > 0


def test_fusing_again_changes_only_the_storage_of_the_weights() -> None:
    model = blast.fuse(sparse_model("llama-nano"))
    plain = {place: mlp.kernel_weights.first for place, mlp in fused_of(model).items()}
    assert set(blast.quantization_errors(model).values()) == {0.0}
    blast.fuse(model, weights="fp8")
    assert list(fused_of(model)) == list(plain)
    assert min(blast.quantization_errors(model).values()) > EXPECTED[0]
    blast.fuse(model)
    assert all(mlp.kernel_weights.first is plain[place] for place, mlp in fused_of(model).items())
    assert not any(isinstance(mlp.original, SparseMlp) for mlp in fused_of(model).values())


@pytest.mark.parametrize("name", MODELS)
def test_fp8_weights_take_a_byte_a_weight_and_four_a_block(name) -> None:
    sparse = sparse_model(name)
    before = blast.model_bytes(sparse)
    fused = blast.fuse(sparse, skip_dead=False, weights="fp8")
    layers = [layer for mlp in fused_of(fused).values() for layer in mlp.layers]
    row_lists = sum(4 * t.numel() for mlp in fused_of(fused).values() for t in mlp.row_lists[:2])
    weights = sum(layer.values.numel() for layer in layers)
    held = blast.model_bytes(fused).weights - before.weights
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
