"""What is changed on a fused MLP after it was fused takes effect."""

from __future__ import annotations

import copy

import pytest
import torch
from operation_sequences import KINDS, Setting
from torch import nn

import blast
from blast.model.fuse import fuse_for_training


def models(kind: str) -> tuple[nn.Module, nn.Module]:
    """A dense model, and the same model made sparse."""
    setting = Setting()
    masks = setting.masks(KINDS[kind])
    dense = setting.dense(KINDS[kind], 0, masks)
    return dense, blast.to_sparse(copy.deepcopy(dense), masks)


@pytest.mark.parametrize("fuse", [blast.fuse, fuse_for_training])
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
    x = torch.randn(2, 16)
    with torch.no_grad():
        torch.testing.assert_close(sparse(x), dense(x))
    torch.testing.assert_close(sparse(x), dense(x))
