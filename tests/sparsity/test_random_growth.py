"""Random growth: no dense gradient is needed, and none is computed in the sparse state."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import blast
from blast.layers.dense_gradient import DenseGradient
from blast.layers.training_mlp import TrainingMlp
from blast.model.module_replacement import sparse_layers


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16))).double()


def sparsifier_of(model: nn.Module, **settings) -> blast.Sparsifier:
    given = {"sparsity": 0.75, "block": 8, "steps": 16, "update_every": 4, "initial_sparsity": 0.5}
    config = blast.SparsifyConfig(**{**given, "grow_score": "random", **settings})
    return blast.Sparsifier(model, torch.optim.AdamW(model.parameters(), lr=0.01), config)


def backward(sparsifier: blast.Sparsifier) -> None:
    generator = torch.Generator().manual_seed(sparsifier.step_count)
    sparsifier.optimizer.zero_grad()
    sparsifier.model(torch.randn(8, 16, generator=generator, dtype=torch.float64)).square().mean().backward()


def expand(mask: torch.Tensor) -> torch.Tensor:
    return mask.repeat_interleave(8, 0).repeat_interleave(8, 1)


@pytest.mark.parametrize("grow", ["union", "swap"])
def test_masked_and_sparse_training_agree(grow):
    results = []
    for execution in ("masked", "sparse"):
        model = small()
        sparsifier = sparsifier_of(model, grow=grow, execution=execution)
        grown = 0
        for _ in range(16):
            backward(sparsifier)
            before = sparsifier.masks
            sparsifier.step()
            grown += sum(int((mask & ~before[name]).sum()) for name, mask in sparsifier.masks.items())
            sparsifier.optimizer.step()
        assert grown
        assert sparsifier.execution == execution
        assert sparsifier.sparsity_achieved == 0.75
        results.append((sparsifier.masks, dict(blast.to_dense(model).named_parameters())))
    (masks, weights), (sparse_masks, sparse_weights) = results
    assert all(torch.equal(mask, sparse_masks[name]) for name, mask in masks.items())
    assert all(torch.allclose(weight, sparse_weights[name], atol=1e-9) for name, weight in weights.items())


@pytest.mark.parametrize("grow", ["union", "swap"])
def test_no_dense_gradient_is_computed(grow, monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("a dense gradient was accumulated")

    monkeypatch.setattr(DenseGradient, "__init__", refuse)
    sparsifier = sparsifier_of(small(), grow=grow, execution="sparse")
    for _ in range(16):
        sparsifier.cuda_graphs.retain_activations()
        mlps = [module for module in sparsifier.model.modules() if isinstance(module, TrainingMlp)]
        assert mlps
        assert all(mlp.saved_activations is None for mlp in mlps)
        backward(sparsifier)
        assert sparsifier.cuda_graphs.can_recompute
        sparsifier.step()
        sparsifier.optimizer.step()
    assert sparse_layers(sparsifier.model)


def test_the_same_run_that_grows_by_gradient_does_compute_one(monkeypatch):
    made = []
    initialize = DenseGradient.__init__
    monkeypatch.setattr(DenseGradient, "__init__", lambda self, values: (made.append(1), initialize(self, values))[1])
    sparsifier = sparsifier_of(small(), execution="sparse", grow_score="gradient")
    for _ in range(5):
        backward(sparsifier)
        sparsifier.step()
        sparsifier.optimizer.step()
    assert made


@pytest.mark.parametrize("execution", ["masked", "sparse"])
def test_a_block_that_grows_trains_from_the_next_step_on(execution):
    sparsifier = sparsifier_of(small(), execution=execution, initial_sparsity=0.7)
    for step in range(9):
        backward(sparsifier)
        before = sparsifier.masks
        sparsifier.step()
        grown = {name: expand(mask & ~before[name]) for name, mask in sparsifier.masks.items()}
        sparsifier.optimizer.step()
        for name, mask in grown.items():
            assert not sparsifier.model.get_submodule(name).weight[mask].any()
        if step % 4 == 0:
            assert any(mask.any() for mask in grown.values())
