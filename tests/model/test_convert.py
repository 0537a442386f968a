"""Whole models are converted from dense to sparse and back without loss."""

from __future__ import annotations

import copy

import pytest
import torch
from sparse_pairs import inputs_of, masked, output_of, pair, random_masks
from sparsity_models import MODELS, loss_of, tiny_gpt2, tiny_llama
from torch import nn

from blast.block_sparse.csr import BlockCSR
from blast.errors import BlastError
from blast.layers.block_linear import BlockLinear
from blast.model.convert import masks_of, to_dense, to_sparse
from blast.model.discovery import match_matrices
from blast.model.module_replacement import sparse_layers

every_model = pytest.mark.parametrize("kind", sorted(MODELS))


@every_model
def test_dense_to_sparse_to_dense_restores_every_tensor_bit_by_bit(kind: str) -> None:
    dense, sparse, _ = pair(kind)
    back = to_dense(sparse)
    assert [(n, type(m)) for n, m in back.named_modules()] == [(n, type(m)) for n, m in dense.named_modules()]
    expected, found = dense.state_dict(), back.state_dict()
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
        assert (found[name].dtype, found[name].stride()) == (tensor.dtype, tensor.stride()), name
    assert torch.equal(output_of(back, inputs_of(kind)), output_of(dense, inputs_of(kind)))


@every_model
def test_a_sparse_model_computes_what_the_masked_dense_model_computes(kind: str) -> None:
    dense, sparse, masks = pair(kind)
    assert set(sparse_layers(sparse)) == set(masks)
    torch.testing.assert_close(output_of(sparse, inputs_of(kind)), output_of(dense, inputs_of(kind)))


@every_model
def test_gradients_of_values_are_the_dense_gradient_at_live_blocks(kind: str) -> None:
    dense, sparse, masks = pair(kind)
    loss_of(dense, 0).backward()
    loss_of(sparse, 0).backward()
    for target in match_matrices(dense):
        expected = BlockCSR.from_dense(target.gradient, masks[target.name]).values
        torch.testing.assert_close(sparse.get_submodule(target.name).values.grad, expected)
    others = {name: p.grad for name, p in dense.named_parameters() if p.grad is not None}
    for name, parameter in sparse.named_parameters():
        if not name.endswith(".values"):
            torch.testing.assert_close(parameter.grad, others[name])


@every_model
def test_masks_of_returns_the_given_masks(kind: str) -> None:
    dense, sparse, masks = pair(kind)
    assert {name: mask.tolist() for name, mask in masks_of(sparse).items()} == {n: m.tolist() for n, m in masks.items()}
    assert masks_of(dense) == {}


def test_rectangular_blocks_and_bfloat16_convert_too() -> None:
    dense = tiny_gpt2().to(torch.bfloat16).eval()
    masks = random_masks(dense, (32, 16))
    sparse = to_sparse(masked(copy.deepcopy(dense), masks), masks, block=(32, 16))
    layer = sparse.transformer.h[0].mlp.c_fc
    assert (layer.values.dtype, tuple(layer.block)) == (torch.bfloat16, (32, 16))
    assert to_dense(sparse).transformer.h[0].mlp.c_fc.weight.dtype == torch.bfloat16


def test_names_biases_flags_and_hooks_do_not_change() -> None:
    model = tiny_gpt2()
    masks = random_masks(model)
    masked(model, masks)
    layer = model.transformer.h[0].mlp.c_fc
    layer.eval()
    layer.weight.requires_grad_(False)
    layer.bias.requires_grad_(False)
    calls = []
    handle = layer.register_forward_hook(lambda *_: calls.append(1))
    bias, names = layer.bias, [name for name, _ in model.named_modules()]

    to_sparse(model, masks)
    sparse = model.transformer.h[0].mlp.c_fc
    assert sparse.bias is bias
    assert (sparse.training, model.transformer.h[1].mlp.c_fc.training) == (False, True)
    assert (sparse.values.requires_grad, sparse.bias.requires_grad) == (False, False)
    assert [name for name, _ in model.named_modules() if not name.endswith(".index")] == names
    loss_of(model, 0)
    assert calls == [1]

    sparse.train()
    back = to_dense(model).transformer.h[0].mlp.c_fc
    assert (back.bias is bias, back.training, back.weight.requires_grad) == (True, True, False)
    loss_of(model, 0)
    assert calls == [1, 1]
    handle.remove()
    loss_of(model, 0)
    assert calls == [1, 1]


def test_tied_embeddings_stay_tied() -> None:
    _, sparse, _ = pair("gpt2")
    assert sparse.lm_head.weight is sparse.transformer.wte.weight
    assert to_dense(sparse).lm_head.weight is sparse.transformer.wte.weight


def test_gate_and_up_with_one_mask_share_one_index() -> None:
    model = tiny_llama()
    masks = random_masks(model)
    for layer in range(2):
        masks[f"model.layers.{layer}.mlp.up_proj"] = masks[f"model.layers.{layer}.mlp.gate_proj"].clone()
    to_sparse(model, masks, drop=True)
    mlp = model.model.layers[0].mlp
    assert mlp.gate_proj.index is mlp.up_proj.index
    assert mlp.gate_proj.index is not mlp.down_proj.index
    assert mlp.gate_proj.index is not model.model.layers[1].mlp.gate_proj.index


class Shared(nn.Module):
    """One layer used in two places, and two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.b = self.a
        self.c = nn.Linear(8, 8)
        self.d = nn.Linear(8, 8)
        self.d.weight = self.c.weight

    def forward(self, x):
        return self.d(self.c(self.b(self.a(x))))


def test_layers_and_weights_used_twice_stay_shared() -> None:
    model, mask = Shared(), torch.eye(2, dtype=torch.bool)
    to_sparse(model, {"a": mask, "c": mask, "d": mask}, drop=True)
    assert isinstance(model.a, BlockLinear)
    assert model.b is model.a
    assert model.d.values is model.c.values
    expected = model(torch.ones(8))
    to_dense(model)
    assert model.b is model.a
    assert model.d.weight is model.c.weight
    torch.testing.assert_close(model(torch.ones(8)), expected)


def test_a_layer_is_found_by_each_of_its_names() -> None:
    model = to_sparse(Shared(), {"b": torch.eye(2, dtype=torch.bool)}, drop=True)
    assert isinstance(model.a, BlockLinear)
    assert model.b is model.a


def test_a_tied_weight_with_a_mask_for_one_use_only_is_refused() -> None:
    mask = torch.eye(2, dtype=torch.bool)
    with pytest.raises(BlastError, match=r"the weight of 'c' is also 'd.weight', which stays dense"):
        to_sparse(Shared(), {"c": mask}, drop=True)
    with pytest.raises(BlastError, match="'c' and 'd' are one tied weight, but their masks differ"):
        to_sparse(Shared(), {"c": mask, "d": ~mask}, drop=True)


def test_weights_outside_the_mask_are_never_lost_silently() -> None:
    model = tiny_llama()
    masks = random_masks(model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(BlastError, match=r"'.*gate_proj' has \d+ of 32 blocks that are not zero but lie outside"):
        to_sparse(model, masks)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert masks_of(to_sparse(model, masks, drop=True)).keys() == masks.keys()


def test_a_nan_outside_the_mask_counts_as_a_weight() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False))
    with torch.no_grad():
        model[0].weight.zero_()[3, 3] = float("nan")
    with pytest.raises(BlastError, match="has 1 of 4 blocks"):
        to_sparse(model, {"0": torch.tensor([[True, True], [True, False]])})


class Adapter(nn.Linear):
    def forward(self, x):
        return super().forward(x) + 1


@pytest.mark.parametrize(
    ("name", "mask", "block", "message"),
    [
        ("mlp.c_fcc", (4, 2), None, r"unknown matrix 'mlp.c_fcc'; did you mean 'mlp.c_fc'\?"),
        ("norm", (4, 2), None, "'norm' is a LayerNorm, which cannot be made block-sparse"),
        (
            "adapter",
            (4, 2),
            None,
            r"'adapter' \(Adapter\) cannot be made block-sparse because its class Adapter",
        ),
        ("attention.out_proj", (4, 4), None, "because torch.nn.MultiheadAttention reads its weight"),
        ("mlp.c_fc", (3, 2), None, r"'mlp.c_fc': a mask of 3 x 2 blocks does not tile a weight of 16 x 8"),
        ("mlp.c_fc", (4, 2), 8, r"the mask of 'mlp.c_fc' has blocks of 4, not 8"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused_with_the_name(name, mask, block, message) -> None:
    model = nn.ModuleDict(
        {
            "mlp": nn.ModuleDict({"c_fc": nn.Linear(8, 16)}),
            "norm": nn.LayerNorm(8),
            "adapter": Adapter(8, 16),
            "attention": nn.MultiheadAttention(8, 2),
        }
    )
    with pytest.raises(BlastError, match=message):
        to_sparse(model, {name: torch.ones(mask, dtype=torch.bool)}, block)


def test_a_sparse_matrix_is_kept_with_its_mask_and_refused_with_another() -> None:
    _, sparse, masks = pair("vit")
    before = {name: id(parameter) for name, parameter in sparse.named_parameters()}
    to_sparse(sparse, masks)
    assert {name: id(parameter) for name, parameter in sparse.named_parameters()} == before
    with pytest.raises(BlastError, match=r"already block-sparse with another mask; call blast.to_dense\(model\)"):
        to_sparse(sparse, {name: ~mask for name, mask in masks.items()})


def test_save_pretrained_of_a_sparse_model_names_what_to_use(tmp_path) -> None:
    _, sparse, _ = pair("gpt2")
    for part in (sparse, sparse.transformer, copy.deepcopy(sparse)):
        with pytest.raises(BlastError, match=r"blast.save\(model, folder\), or blast.export_dense\(model, folder\)"):
            part.save_pretrained(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    to_dense(sparse).save_pretrained(tmp_path / "folder")
    assert (tmp_path / "folder" / "model.safetensors").exists()
