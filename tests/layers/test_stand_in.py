"""A fused MLP is found, asked, called, copied and pickled as the MLP that it replaces."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from sparse_pairs import inputs_of, output_of, pair
from torch import nn
from torchvision.models.vision_transformer import MLPBlock
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.models.llama.modeling_llama import LlamaMLP

import blast
from blast.layers.sparse_mlp import SparseMlp
from blast.layers.stand_in import stand_in_class
from blast.layers.training_mlp import TrainingMlp
from blast.model.fuse import fuse_for_training

both = pytest.mark.parametrize("fuse", [blast.fuse, fuse_for_training])
X = torch.randn(3, 16, generator=torch.Generator().manual_seed(5))


def sequential() -> nn.Sequential:
    """A sparse MLP in a Sequential, inside a model."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16)))
    masks = {"0.0": torch.rand(8, 2) < 0.5, "0.2": torch.rand(2, 8) < 0.5}
    return blast.to_sparse(model, masks, drop=True)


def test_stand_ins_of_one_kind_have_one_class():
    """So that `type(a) is type(b)`, and pickles find it again."""
    assert stand_in_class(SparseMlp, LlamaMLP) is stand_in_class(SparseMlp, LlamaMLP)
    assert stand_in_class(SparseMlp, LlamaMLP) is not stand_in_class(SparseMlp, GPT2MLP)


class Optional(nn.Module):
    """An MLP with a further argument, an option, a method, and a child called `activation`."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.activation, self.fc2 = nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16)
        self.width, self.factor = 64, 1.0

    def forward(self, hidden_states, scale=None):
        y = self.fc2(self.activation(self.fc1(hidden_states)))
        return y if scale is None else scale * y

    def widths(self):
        return self.fc1.out_features, self.width


def optional() -> nn.Module:
    torch.manual_seed(0)
    masks = {"0.fc1": torch.rand(8, 2) < 0.5, "0.fc2": torch.rand(2, 8) < 0.5}
    return blast.to_sparse(nn.Sequential(Optional()), masks, drop=True)


@both
def test_a_sequential_is_indexed_sliced_counted_and_iterated(fuse) -> None:
    model = sequential()
    parts, expected = list(model[0]), model(X)
    mlp = fuse(model)[0]
    assert isinstance(mlp, SparseMlp)
    assert [mlp[0], mlp[-1], len(mlp), *mlp] == [parts[0], parts[2], 3, *parts]
    assert type(mlp[:2]) is nn.Sequential
    assert list(mlp[:2]) == parts[:2]
    torch.testing.assert_close(model(X), expected)


@both
@pytest.mark.parametrize(("kind", "of"), [("llama", LlamaMLP), ("gpt2", GPT2MLP), ("vit", MLPBlock)])
def test_a_fused_mlp_is_an_instance_of_the_class_that_it_replaces(fuse, kind, of) -> None:
    _, sparse, _ = pair(kind)
    found = [module for module in fuse(sparse).modules() if isinstance(module, of)]
    assert len(found) == 2
    assert all(isinstance(module, SparseMlp) for module in found)
    assert {type(module).__name__ for module in found} == {"TrainingMlp" if fuse is fuse_for_training else "SparseMlp"}
    assert not any(isinstance(module, SparseMlp) for module in blast.unfuse(sparse).modules())


@both
def test_attributes_methods_and_children_are_those_of_the_mlp(fuse) -> None:
    _, sparse, _ = pair("llama")
    expected = sparse.model.layers[0].mlp.config
    mlp = fuse(sparse).model.layers[0].mlp
    assert mlp.config is expected
    assert mlp.hidden_size == 64
    mlp = fuse(optional())[0]
    assert mlp.widths() == (64, 64)
    assert isinstance(mlp.activation, nn.GELU)
    mlp.width = 3
    assert mlp.widths() == mlp.original.widths() == (64, 3)
    with pytest.raises(AttributeError, match="no_such_name"):
        mlp.no_such_name  # noqa: B018


@both
def test_every_call_that_the_mlp_takes_gives_the_same(fuse) -> None:
    calls = [
        lambda mlp: mlp(X),
        lambda mlp: mlp(hidden_states=X),
        lambda mlp: mlp(X, 2.0),
        lambda mlp: mlp(X, scale=3.0),
        lambda mlp: mlp(X, None),
        lambda mlp: mlp(X[0]),
        lambda mlp: mlp(X[:0]),
        lambda mlp: mlp(X.view(1, 3, 16)),
    ]
    expected = [call(optional()[0]) for call in calls]
    fused = fuse(optional())[0]
    for call, wanted in zip(calls, expected, strict=True):
        torch.testing.assert_close(call(fused), wanted)
        with torch.no_grad():
            torch.testing.assert_close(call(fused), wanted)
    with pytest.raises(TypeError, match="argument"):
        fused(X, other=1)


@both
@pytest.mark.parametrize("copied", ["deepcopy", "pickle"])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "vit"])
def test_a_fused_model_is_copied_and_pickled(fuse, copied, kind) -> None:
    _, sparse, _ = pair(kind)
    model = fuse(sparse)
    expected = output_of(model, inputs_of(kind))
    if copied == "deepcopy":
        other = copy.deepcopy(model)
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    fused = [module for module in other.modules() if isinstance(module, SparseMlp)]
    assert len(fused) == 2
    assert all(isinstance(mlp, TrainingMlp) == (fuse is fuse_for_training) for mlp in fused)
    assert all(mlp._modules is mlp.original._modules for mlp in fused)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(output_of(other, inputs_of(kind)), expected)
    assert not any(isinstance(module, SparseMlp) for module in blast.unfuse(other).modules())
