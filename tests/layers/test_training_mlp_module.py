"""A sparse MLP during training: one call of the operator gives the same gradients as its layers one by one."""

from __future__ import annotations

import copy

import pytest
import torch
from sparse_pairs import inputs_of, output_of, pair
from torch import nn
from torch.utils.checkpoint import checkpoint

import blast
from blast.layers.block_linear import BlockLinear
from blast.layers.sparse_mlp import SparseMlp
from blast.layers.training_mlp import TrainingMlp
from blast.model.fuse import fuse_for_training

KINDS = ("gpt2", "llama", "vit")


def both(kind: str) -> tuple[nn.Module, nn.Module]:
    """The sparse model layer by layer, and with its MLPs by the operator; in training mode."""
    _, sparse, _ = pair(kind)
    return sparse.train(), fuse_for_training(copy.deepcopy(sparse)).train()


def gradients(model: nn.Module, kind: str) -> dict[str, torch.Tensor]:
    model.zero_grad()
    output_of(model, inputs_of(kind)).float().square().mean().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def agree(ours: dict, theirs: dict, tolerance: float = 1e-4) -> None:
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() <= tolerance * gradient.norm() + 1e-7, name


def mlps(model: nn.Module) -> list[SparseMlp]:
    return [module for module in model.modules() if isinstance(module, SparseMlp)]


@pytest.fixture
def calls(monkeypatch):
    """Counts how often layers run by themselves."""
    seen = []
    forward = BlockLinear.forward
    monkeypatch.setattr(BlockLinear, "forward", lambda self, x: seen.append(self) or forward(self, x))
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_match_those_of_single_layers(kind, calls):
    layered, trained = both(kind)
    assert len(mlps(trained)) == 2
    expected = gradients(layered, kind)
    assert calls
    calls.clear()
    agree(gradients(trained, kind), expected)
    assert not calls


def test_an_mlp_fused_for_inference_trains_with_the_operator(calls):
    layered, _ = both("llama")
    expected, fused = gradients(layered, "llama"), blast.fuse(copy.deepcopy(layered)).train()
    calls.clear()
    agree(gradients(fused, "llama"), expected)
    assert not calls


def test_under_autocast_the_operator_runs_in_its_dtype():
    layered, trained = both("llama")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, ours = gradients(layered, "llama"), gradients(trained, "llama")
        x = torch.randn(3, 64)
        assert mlps(trained)[0](x).dtype == torch.bfloat16
    assert all(gradient.dtype == torch.float32 for gradient in ours.values())
    agree(ours, expected, tolerance=2e-2)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(reentrant):
    _, trained = both("llama")
    mlp = mlps(trained)[0]
    x = torch.randn(5, 64, requires_grad=True)
    results = []
    for wrapped in (False, True):
        trained.zero_grad()
        x.grad = None
        y = checkpoint(mlp, x, use_reentrant=reentrant) if wrapped else mlp(x)
        y.square().sum().backward()
        results.append([x.grad, *(layer.values.grad for layer in mlp.layers)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_gradients_of_two_passes_add_up():
    _, trained = both("gpt2")
    once = gradients(trained, "gpt2")
    output_of(trained, inputs_of("gpt2")).square().mean().backward()
    agree({name: parameter.grad for name, parameter in trained.named_parameters()}, {n: 2 * g for n, g in once.items()})


def test_it_compiles_as_one_graph():
    _, trained = both("llama")
    mlp = mlps(trained)[0]
    x = torch.randn(5, 64, requires_grad=True)
    mlp(x).sum().backward()
    expected = [x.grad.clone(), *(layer.values.grad.clone() for layer in mlp.layers)]
    x.grad = None
    trained.zero_grad()
    torch.compile(mlp, backend="aot_eager", fullgraph=True)(x).sum().backward()
    ours = [x.grad, *(layer.values.grad for layer in mlp.layers)]
    for gradient, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(gradient, other)


def test_active_dropout_runs_layer_by_layer(calls):
    _, sparse, _ = pair("gpt2")
    for module in sparse.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    trained = fuse_for_training(sparse).train()
    gradients(trained, "gpt2")
    assert calls
    calls.clear()
    gradients(trained.eval(), "gpt2")
    assert not calls


def test_mismatched_hidden_blocks_run_layer_by_layer():
    _, sparse, _ = pair("llama", (16, 32))
    assert not mlps(fuse_for_training(sparse))
    expected = gradients(sparse.train(), "llama")
    agree(gradients(blast.fuse(sparse).train(), "llama"), expected)


def test_lists_are_in_no_state_dict_and_survive_loading_and_casting():
    _, sparse, _ = pair("llama")
    trained = fuse_for_training(copy.deepcopy(sparse)).train()
    gradients(trained, "llama")
    assert list(trained.state_dict()) == list(sparse.state_dict())
    other = copy.deepcopy(sparse).train()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2)
    trained.load_state_dict(other.state_dict())
    agree(gradients(trained, "llama"), gradients(other, "llama"))
    agree(gradients(trained.double().float(), "llama"), gradients(other, "llama"))


def test_names_and_checkpoints_do_not_change(tmp_path):
    _, sparse, _ = pair("gpt2")
    digest = blast.save(sparse, tmp_path / "sparse")
    trained = fuse_for_training(copy.deepcopy(sparse))
    assert blast.save(trained, tmp_path / "trained") == digest
    assert all(not isinstance(mlp, TrainingMlp) for mlp in mlps(blast.fuse(copy.deepcopy(trained))))
    assert not mlps(blast.unfuse(copy.deepcopy(trained)))
    assert not any(isinstance(m, BlockLinear | TrainingMlp) for m in blast.to_dense(trained).modules())
