"""Experts with block-sparse matrices compute what the dense ones compute, and become dense again without loss."""

from __future__ import annotations

import copy

import pytest
import torch
from experts_models import FAMILIES, build, loss_of, tokens
from sparse_pairs import masked, random_masks
from torch import nn
from transformers import AutoModelForCausalLM

import blast
from blast.block_sparse.blocks import BlockShape, expand_mask
from blast.errors import BlastError
from blast.layers.sparse_experts import SparseExperts
from blast.model.experts import find_experts

BLOCK = 8


def pair(
    family: str, dtype: torch.dtype = torch.float64, block: int = BLOCK
) -> tuple[nn.Module, nn.Module, dict[str, torch.Tensor]]:
    """A masked-dense model, its sparse copy, and the masks."""
    dense = build(family).to(dtype)
    if hasattr(dense, "set_experts_implementation"):
        dense.set_experts_implementation("eager")  # the others have no float64
    masks = random_masks(dense, block)
    masked(dense, masks)
    return dense, blast.to_sparse(copy.deepcopy(dense), masks), masks


def experts_of(model: nn.Module) -> list[nn.Module]:
    return [module for name, module in model.named_modules() if name.endswith(".experts")]


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_and_gradients_are_those_of_the_dense_experts(family):
    dense, sparse, masks = pair(family)
    assert all(isinstance(module, SparseExperts) for module in experts_of(sparse))
    assert blast.masks_of(sparse).keys() == masks.keys()
    expected, found = dense(input_ids=tokens()).logits, sparse(input_ids=tokens()).logits
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    for model in (dense, sparse):
        loss_of(model).backward()
    for experts in find_experts(dense):
        for target in experts.targets:
            layer = sparse.get_submodule(target.name)
            blocks = torch.zeros_like(layer.values) if layer.values.grad is None else layer.values.grad
            found = blast.BlockCSR(layer.index.index, blocks).to_dense()
            live = target.gradient * expand_mask(masks[target.name], BlockShape(BLOCK, BLOCK))
            torch.testing.assert_close(found, live, rtol=1e-9, atol=1e-13)
    for name, parameter in dense.named_parameters():
        if name.endswith(("_bias", "embed_tokens.weight")):
            torch.testing.assert_close(sparse.get_parameter(name).grad, parameter.grad, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_is_loaded_and_becomes_dense_without_loss(family, tmp_path):
    dense, sparse, masks = pair(family, torch.float32)
    blast.save(sparse, tmp_path / "model")
    loaded = blast.load(tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=tokens()).logits, sparse(input_ids=tokens()).logits)
    found = blast.masks_of(loaded)
    assert all(torch.equal(found[name], mask) for name, mask in masks.items())
    for model in (loaded, sparse):
        state = blast.to_dense(model).state_dict()
        assert list(state) == list(dense.state_dict())
        assert all(torch.equal(state[name], value) for name, value in dense.state_dict().items())
        assert [type(module) for module in experts_of(model)] == [type(module) for module in experts_of(dense)]


@pytest.mark.parametrize("family", ["qwen2_moe", "gpt_oss"])
def test_transformers_opens_a_checkpoint_with_experts_and_its_dense_export(family, tmp_path):
    dense, sparse, masks = pair(family, torch.float32)
    blast.save(sparse, tmp_path / "sparse")
    blast.export_dense(tmp_path / "sparse", tmp_path / "dense")
    opened = {name: AutoModelForCausalLM.from_pretrained(tmp_path / name).eval() for name in ("sparse", "dense")}
    assert blast.masks_of(opened["sparse"]).keys() == masks.keys()
    assert not blast.masks_of(opened["dense"])
    with torch.no_grad():
        for model in opened.values():
            torch.testing.assert_close(model(input_ids=tokens()).logits, dense(input_ids=tokens()).logits)
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "sparse", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert half(input_ids=tokens()).logits.isfinite().all()


def test_experts_without_a_token_are_left_out():
    dense, sparse, _ = pair("mixtral")
    x = torch.randn(3, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    # Expert 4 does not exist: transformers marks tokens that stay without an expert so.
    chosen, weights = torch.tensor([[1, 4], [1, 2], [4, 4]]), torch.tensor([[0.7, 0.0], [0.2, 0.8], [0.0, 0.0]])
    experts, ours = experts_of(dense)[0], experts_of(sparse)[0]
    found = ours(x, chosen, top_k_weights=weights.double())
    torch.testing.assert_close(found, experts(x, chosen, weights.double()), rtol=1e-12, atol=0)
    assert not found[2].any()
    found.sum().backward()
    used = [layer.values.grad is not None for layer in ours.gate_up_proj]
    assert used == [False, True, True, False]


def test_one_of_the_two_parameters_can_stay_dense():
    dense = build("gpt_oss")
    masks = {name: mask for name, mask in random_masks(dense, BLOCK).items() if ".gate_up_proj." in name}
    for name, mask in masks.items():
        path, _, number = name.rpartition(".")
        dense.get_parameter(path).data[int(number)] *= expand_mask(mask, BlockShape(BLOCK, BLOCK)).t()
    sparse = blast.to_sparse(copy.deepcopy(dense), masks)
    with torch.no_grad():
        expected, found = dense(input_ids=tokens()).logits, sparse(input_ids=tokens()).logits
    torch.testing.assert_close(found, expected)
    state = blast.to_dense(sparse).state_dict()
    assert all(torch.equal(state[name], value) for name, value in dense.state_dict().items())


def test_experts_keep_their_attributes_hooks_and_copies():
    dense, _, masks = pair("qwen3_moe", torch.float32)
    calls: list[int] = []
    experts_of(dense)[0].register_forward_hook(lambda *_: calls.append(1))
    sparse = blast.to_sparse(dense, masks)
    experts = experts_of(sparse)[0]
    assert experts.num_experts == 4
    assert experts.act_fn is experts.dense_module().act_fn
    copied = copy.deepcopy(sparse)
    with torch.no_grad():
        assert torch.equal(copied(input_ids=tokens()).logits, sparse(input_ids=tokens()).logits)
    assert sum(calls) >= 1
    with pytest.raises(AttributeError, match="no_such_attribute"):
        _ = experts.no_such_attribute


def test_what_does_not_fit_is_refused_in_a_sentence():
    dense, sparse, masks = pair("olmoe", torch.float32)
    first = next(iter(masks))
    with pytest.raises(BlastError, match=r"^the masks name 1 of the 4 experts of 'model.layers.0.mlp.experts.gate_up"):
        blast.to_sparse(dense, {first: masks[first]})
    with pytest.raises(BlastError, match=r"unknown matrix 'model.layers.0.mlp.experts.gate_up_proj.9'"):
        blast.to_sparse(dense, {first[:-1] + "9": masks[first]})
    with pytest.raises(BlastError, match="experts run one after the other and are not fused"):
        blast.fuse(sparse)
    with pytest.raises(BlastError, match=f"'{first}' is block-sparse already"):
        blast.Sparsifier(sparse, torch.optim.SGD(sparse.parameters()), blast.SparsifyConfig(0.5, BLOCK, steps=2))


def test_a_state_dict_of_dense_experts_is_refused_before_anything_is_loaded():
    dense, sparse, _ = pair("mixtral", torch.float32)
    before = {name: value.clone() for name, value in sparse.state_dict().items()}
    state = {name: value + 1 for name, value in dense.state_dict().items()}
    with pytest.raises(BlastError, match=r"^the state dict has dense weights for the experts 'model.layers.0.mlp.exp"):
        sparse.load_state_dict(state)
    assert all(torch.equal(before[name], value) for name, value in sparse.state_dict().items())


def test_sparse_weights_of_experts_count_as_mlp_weights():
    dense, sparse, _ = pair("mixtral")
    whole, live = blast.model_bytes(dense), blast.model_bytes(sparse)
    experts = sum(parameter.numel() * 8 for name, parameter in dense.named_parameters() if ".experts." in name)
    assert whole.mlp == experts
    assert whole.weights - live.weights == whole.mlp - live.mlp
    assert live.mlp < 0.5 * whole.mlp


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "llama4"])
def test_experts_compute_on_a_gpu_in_bfloat16_what_they_compute_in_float32(family):
    _, sparse, _ = pair(family, torch.float32, block=16)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(64, 32, generator=generator)
    routing = []
    if family != "llama4":
        chosen = torch.randint(4, (64, 2), generator=generator)
        routing = [chosen, torch.rand(64, 2, generator=generator)]
    experts = experts_of(sparse)[0]
    with torch.no_grad():
        expected = experts(x, *routing)
        half = copy.deepcopy(experts).to("cuda", torch.bfloat16)
        moved = [each.cuda() if each.dtype == torch.int64 else each.to("cuda", torch.bfloat16) for each in routing]
        found = half(x.to("cuda", torch.bfloat16), *moved).float().cpu()
    assert (found - expected).norm() < 0.02 * expected.norm()


def test_a_sparse_mixture_compiles():
    _, sparse, _ = pair("llama4", torch.float32)
    x = torch.randn(8, 32)
    experts = experts_of(sparse)[0]
    with torch.no_grad():
        assert torch.equal(torch.compile(experts, backend="eager")(x), experts(x))
