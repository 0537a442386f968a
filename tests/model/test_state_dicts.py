"""A state dict is loaded into a sparse model of the same masks, and refused whole otherwise."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from sparse_pairs import inputs_of, output_of, pair
from torch import nn

import blast
from blast.errors import BlastError


def masks(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"0.0": (8, 2), "0.2": (2, 8), "1.0": (8, 2), "1.2": (2, 8)}
    return {name: torch.rand(shape, generator=generator) < 0.5 for name, shape in shapes.items()}


def dense(device: str = "cpu", seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    with torch.device(device):
        return nn.Sequential(*(nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16)) for _ in range(2)))


def sparse(device: str = "cpu", seed: int = 0) -> nn.Module:
    return blast.to_sparse(dense(device, seed), masks(seed), drop=True)


X = torch.randn(3, 16, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("prepare", [lambda m: m, blast.fuse, copy.deepcopy], ids=["sparse", "fused", "copied"])
@pytest.mark.parametrize("strict", [True, False])
def test_a_state_dict_of_another_mask_is_refused_and_nothing_is_loaded(prepare, strict) -> None:
    model = prepare(sparse())
    state = sparse(seed=0).state_dict()
    other = sparse(seed=1).state_dict()
    # The first layers fit.
    state |= {name: tensor for name, tensor in other.items() if name.startswith("1.2")}
    state["0.0.bias"] = torch.ones(64)
    with torch.no_grad():
        before = model(X)
        with pytest.raises(BlastError, match=r"the state dict has another mask for '1\.2': \d+ live blocks, where"):
            model.load_state_dict(state, strict=strict)
        assert torch.equal(model(X), before)


def test_masks_with_as_many_blocks_at_other_places_are_refused() -> None:
    turned = {name: mask.flip(0) for name, mask in masks().items()}
    other = blast.to_sparse(dense(), turned, drop=True)
    with pytest.raises(BlastError, match=r"another mask for '0\.0': .* at other places; make the model sparse"):
        sparse().load_state_dict(other.state_dict())


def test_a_mask_shared_by_gate_and_up_is_not_overwritten_by_another() -> None:
    _, tied, tied_masks = pair("llama")
    tied_masks = {name: tied_masks[name.replace("up_proj", "gate_proj")] for name in tied_masks}
    model = blast.to_sparse(blast.to_dense(tied), tied_masks, drop=True)
    untied = {name: mask.flip(0) if "up_proj" in name else mask for name, mask in tied_masks.items()}
    other = blast.to_sparse(blast.to_dense(copy.deepcopy(model)), untied, drop=True)
    with pytest.raises(BlastError, match=r"another mask for 'model\.layers\.0\.mlp\.up_proj'"):
        model.load_state_dict(other.state_dict())


def test_a_dense_state_dict_is_refused_with_what_to_do() -> None:
    with pytest.raises(BlastError, match=r"has a dense weight for '0\.0', which is block-sparse; .*blast.to_dense"):
        sparse().load_state_dict(dense().state_dict())
    blast.to_dense(model := sparse()).load_state_dict(dense().state_dict())
    assert torch.equal(model(X), dense()(X))
    assert not model._load_state_dict_pre_hooks


def test_other_blocks_are_refused_with_both_shapes() -> None:
    other = blast.to_sparse(dense(), {"0.0": torch.ones(4, 2, dtype=torch.bool)})
    state = {name: tensor for name, tensor in other.state_dict().items() if name.endswith("values")}
    with pytest.raises(BlastError, match=r"values \[8, 16, 8\] for '0\.0', where the model has \[\d+, 8, 8\]"):
        sparse().load_state_dict(state, strict=False)


def test_a_part_of_a_state_dict_is_loaded() -> None:
    model, other = sparse(), sparse()
    with torch.no_grad():
        other[0][2].values.mul_(2)
    parameters = {name: value for name, value in other.named_parameters() if name.startswith("0.2")}
    model.load_state_dict(parameters, strict=False)
    assert torch.equal(model(X), other(X))


@pytest.mark.parametrize("fused", [False, True])
def test_a_model_on_the_meta_device_is_filled_from_a_state_dict(fused) -> None:
    full = sparse()
    empty = sparse("meta")
    assert {name: mask.tolist() for name, mask in blast.masks_of(empty).items()} == {
        name: mask.tolist() for name, mask in masks().items()
    }
    assert all(tensor.is_meta for tensor in empty.state_dict().values())
    assert blast.to_sparse(empty, masks()) is empty
    with pytest.raises(BlastError, match=r"another mask for '0\.0'"):
        empty.load_state_dict(sparse(seed=1).state_dict(), assign=True)
    assigned, allocated = copy.deepcopy(empty), copy.deepcopy(empty)
    if fused:
        assigned, allocated = blast.fuse(assigned), blast.fuse(allocated)
    assigned.load_state_dict(full.state_dict(), assign=True)
    allocated.to_empty(device="cpu").load_state_dict(full.state_dict())
    for model in (assigned, allocated):
        with torch.no_grad():
            torch.testing.assert_close(model(X), full(X))
        x, y = X.clone().requires_grad_(), X.clone().requires_grad_()
        model(x).sum().backward()
        full(y).sum().backward()
        torch.testing.assert_close(x.grad, y.grad)
        assert model.get_submodule("0.0").index.t_order.device.type == "cpu"


def test_a_model_moved_to_the_meta_device_and_back_keeps_its_masks() -> None:
    model, state = sparse(), sparse().state_dict()
    model.to("meta").to_empty(device="cpu")
    parameters = {name: tensor for name, tensor in state.items() if ".index." not in name}
    model.load_state_dict(parameters, strict=False)
    assert torch.equal(model(X), sparse()(X))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_whole_sparse_model_is_pickled(kind) -> None:
    _, model, _ = pair(kind)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(output_of(loaded, inputs_of(kind)), output_of(model, inputs_of(kind)))
    loaded.load_state_dict(model.state_dict())
