"""What is changed on a fused MLP after it was fused takes effect."""

from __future__ import annotations

import copy

import pytest
import torch
from operation_models import KINDS, Setting
from torch import nn

import blast
from blast.model.fuse import fuse_for_training


def models(kind: str) -> tuple[nn.Module, nn.Module]:
    """A dense model, and the same model made sparse."""
    setting = Setting()
    masks = setting.masks(KINDS[kind])
    dense = setting.dense(KINDS[kind], 0, masks)
    return dense, blast.to_sparse(copy.deepcopy(dense), masks)


FUSE = pytest.mark.parametrize("fuse", [blast.fuse, fuse_for_training])


def same(dense: nn.Module, sparse: nn.Module) -> None:
    x = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(sparse(x), dense(x))
    torch.testing.assert_close(sparse(x), dense(x))


@FUSE
@pytest.mark.parametrize("child", ["up_proj", "act_fn"])
def test_a_hook_that_is_registered_after_fusing_is_called(fuse, child):
    dense, sparse = models("gated, shared mask")
    fuse(sparse)
    for model in (dense, sparse):
        model.mlp.get_submodule(child).register_forward_hook(lambda module, given, output: output + 1)
    same(dense, sparse)


@FUSE
def test_a_hook_of_all_modules_sees_the_layers_of_a_fused_mlp(fuse):
    dense, sparse = models("gated, shared mask")
    fuse(sparse)
    seen = {"SiLU": 0, "BlockLinear": 0}

    def count(module, given, output):
        seen[type(module).__name__] = seen.get(type(module).__name__, 0) + 1

    handle = nn.modules.module.register_module_forward_hook(count)
    try:
        sparse(torch.ones(2, 16))
    finally:
        handle.remove()
    assert (seen["SiLU"], seen["BlockLinear"]) == (1, 3)
    same(dense, sparse)


@FUSE
def test_a_fused_model_is_exported_with_and_without_gradients(fuse):
    dense, sparse = models("gated, shared mask")
    exported = [torch.export.export(fuse(sparse), (torch.ones(2, 16),))]
    with torch.no_grad():
        exported.append(torch.export.export(sparse, (torch.ones(2, 16),)))
    for program in exported:
        same(dense, program.module())


@FUSE
def test_a_child_that_is_replaced_after_fusing_is_used(fuse):
    dense, sparse = models("gated, separate masks")
    fuse(sparse)
    for model in (dense, sparse):
        model.mlp.act_fn = nn.ReLU()
        model.mlp.up_proj = nn.Sequential(model.mlp.up_proj, nn.Tanh())
    same(dense, sparse)
    assert "SparseMlp" not in str(blast.unfuse(sparse))
    same(dense, sparse)


@FUSE
def test_a_forward_that_is_set_on_a_child_after_fusing_is_called(fuse):
    dense, sparse = models("plain")
    fuse(sparse)
    for model in (dense, sparse):
        plain = model.mlp.fc1.forward
        model.mlp.fc1.forward = lambda x, plain=plain: plain(x) + 10
    same(dense, sparse)


@FUSE
def test_dropout_that_is_switched_on_after_fusing_is_active(fuse):
    dense, sparse = models("plain")
    fuse(sparse)
    outputs = []
    for model in (dense, sparse):
        model.mlp.dropout.p = 0.5
        model.train()
        torch.manual_seed(0)
        outputs.append(model(torch.ones(2, 16)))
    torch.testing.assert_close(outputs[1], outputs[0])


@pytest.mark.parametrize("fuse", [lambda model: model, blast.fuse, fuse_for_training])
def test_memory_without_values_can_be_filled_from_a_state_dict(fuse):
    dense, sparse = models("gated, separate masks")
    state = {name: tensor.clone() for name, tensor in sparse.state_dict().items()}
    fuse(sparse).to_empty(device="cpu").load_state_dict(state)
    same(dense, sparse)
