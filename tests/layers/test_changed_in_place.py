"""What a layer returns may be changed in place, as activations and residuals of some models do (Llama 4)."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

import blast
from blast.model.fuse import fuse_for_training

MASKS = {"mlp.gate_proj": (8, 4), "mlp.up_proj": (8, 4), "mlp.down_proj": (4, 8)}


class Residual(nn.Module):
    """Adds its input to the output of its MLP, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = LlamaMLP(LlamaConfig(hidden_size=32, intermediate_size=64))

    def forward(self, x):
        return self.mlp(x).add_(x)


@pytest.mark.parametrize(
    "change", [lambda model: model, blast.fuse, fuse_for_training], ids=["sparse", "fused", "training"]
)
@pytest.mark.parametrize("trains", [True, False])
def test_the_output_of_a_layer_may_be_changed_in_place(change, trains):
    torch.manual_seed(0)
    sparse = blast.to_sparse(Residual(), {name: torch.rand(grid) < 0.5 for name, grid in MASKS.items()}, drop=True)
    sparse.requires_grad_(trains)
    dense, model = blast.to_dense(copy.deepcopy(sparse)), change(sparse)
    grads = []
    for each in (dense, model):
        x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1), requires_grad=True)
        out = each(x)
        out.square().sum().backward()
        grads.append((out.detach(), x.grad))
    torch.testing.assert_close(grads[1], grads[0])
