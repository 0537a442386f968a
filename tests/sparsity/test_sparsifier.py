from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from sparsity_models import (
    MODELS,
    OPTIMIZERS,
    assert_dead_blocks_are_zero,
    block_norms,
    dead_elements,
    loss_of,
    tiny_gpt2,
    tiny_llama,
    train_step,
    weight_of,
)
from torch import nn

from blast.block_sparse.blocks import keep_count
from blast.errors import BlastError
from blast.sparsity.config import METHODS, SparsifyConfig
from blast.sparsity.sparsifier import Sparsifier


def make(model: nn.Module, optimizer: str = "adamw", method: str = "blast", **settings) -> Sparsifier:
    settings = {"sparsity": 0.75, "block": 16, "steps": 12, "update_every": 3, "hold": 0.25, **settings}
    config = SparsifyConfig.from_method(method, **settings)
    return Sparsifier(model, OPTIMIZERS[optimizer](model.parameters()), config)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", MODELS)
def test_dead_blocks_stay_zero_and_the_budget_is_exact_at_the_end(model, optimizer):
    sparsifier = make(MODELS[model](), optimizer)
    for _ in range(12):
        train_step(sparsifier)
        assert_dead_blocks_are_zero(sparsifier)
    report = sparsifier.report()
    for name, mask in sparsifier.masks.items():
        assert int(mask.sum()) == keep_count(mask.numel(), 0.75) == report["matrices"][name]["live"]
        assert weight_of(sparsifier.model, name)[~dead_elements(sparsifier, name)].count_nonzero() > 0
    assert sparsifier.sparsity_achieved == report["achieved"] == 0.75
    assert sparsifier.finished


TRAINABLE = [name for name, preset in METHODS.items() if preset["keep_score"] not in ("wanda", "obs")]


@pytest.mark.parametrize("method", TRAINABLE)
def test_every_method_keeps_dead_blocks_zero_and_ends_at_its_budget(method):
    sparsifier = make(tiny_gpt2(), method=method)
    first = {name: mask.clone() for name, mask in sparsifier.masks.items()}
    for _ in range(12):
        train_step(sparsifier)
        assert_dead_blocks_are_zero(sparsifier)
        if method != "blast":
            assert sparsifier.sparsity_achieved == pytest.approx(sparsifier.sparsity_target, abs=0.5 / 64)
    assert sparsifier.sparsity_achieved == 0.75
    if method in ("one_shot", "random"):
        assert all(torch.equal(mask, first[name]) for name, mask in sparsifier.masks.items())


def test_union_stays_below_the_target_until_the_trim_and_both_are_told():
    sparsifier = make(tiny_llama())
    seen = []
    for _ in range(12):
        train_step(sparsifier)
        seen.append((sparsifier.sparsity_target, sparsifier.sparsity_achieved))
    assert all(achieved <= target + 1e-9 for target, achieved in seen)
    assert any(achieved < target - 0.05 for target, achieved in seen[:9])
    assert seen[9:] == [(0.75, 0.75)] * 3


def test_the_mask_is_fixed_for_the_last_steps():
    sparsifier = make(tiny_llama())
    history = []
    for _ in range(12):
        train_step(sparsifier)
        history.append({name: mask.clone() for name, mask in sparsifier.masks.items()})
    changed = [any(not torch.equal(a[n], b[n]) for n in a) for a, b in pairwise(history)]
    # The trim comes with step 9.
    assert changed[8]
    assert not any(changed[9:])


def grown_by_one_update(optimizer: str) -> tuple[Sparsifier, dict[str, torch.Tensor]]:
    """A sparsifier just after a mask update, before its optimizer step, and the elements that the update grew."""
    sparsifier = make(tiny_gpt2(), optimizer, method="rigl_swap", initial_sparsity=0.5, sparsity=0.5, swap_share=0.5)
    for _ in range(6):
        train_step(sparsifier)
    before = {name: dead_elements(sparsifier, name) for name in sparsifier.masks}
    sparsifier.optimizer.zero_grad()
    loss_of(sparsifier.model, 6).backward()
    sparsifier.step()
    return sparsifier, {name: before[name] & ~dead_elements(sparsifier, name) for name in before}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_grown_blocks_start_at_zero_with_an_empty_optimizer_state(optimizer):
    sparsifier, grown = grown_by_one_update(optimizer)
    assert any(mask.any() for mask in grown.values())
    for name, mask in grown.items():
        assert weight_of(sparsifier.model, name)[mask].count_nonzero() == 0
        module = sparsifier.model.get_submodule(name)
        states = [v.t() for v in sparsifier.optimizer.state[module.weight].values() if v.shape == module.weight.shape]
        assert states
        dead = dead_elements(sparsifier, name)
        for state in states:
            assert state[mask].count_nonzero() == 0
            assert state[dead].count_nonzero() == 0
            assert state[~dead & ~mask].count_nonzero() > 0
        gradient = module.weight.grad.t()
        assert gradient[dead].count_nonzero() == 0
        assert not mask.any() or gradient[mask].count_nonzero() > 0
    sparsifier.optimizer.step()
    assert any(weight_of(sparsifier.model, name)[mask].count_nonzero() > 0 for name, mask in grown.items())


def test_growth_follows_the_dense_gradient():
    sparsifier = make(tiny_gpt2(), method="rigl_swap", initial_sparsity=0.5, sparsity=0.5, swap_share=0.5)
    train_step(sparsifier)
    before = sparsifier.masks
    sparsifier._clock.step_count = 3
    sparsifier.optimizer.zero_grad()
    loss_of(sparsifier.model, 3).backward()
    norms = {n: block_norms(sparsifier.model.get_submodule(n).weight.grad.t(), sparsifier.config.block) for n in before}
    sparsifier.step()
    for name, old in before.items():
        grown = sparsifier.masks[name] & ~old
        refused = ~sparsifier.masks[name] & ~old
        assert grown.any()
        assert norms[name][grown].min() >= norms[name][refused].max()


def test_an_optimizer_that_mixes_elements_leaves_dead_blocks_at_zero():
    class Mixing(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.data.add_(1e-3)

    model = tiny_gpt2()
    config = SparsifyConfig(sparsity=0.75, block=16, steps=4, update_every=2)
    sparsifier = Sparsifier(model, Mixing(model.parameters(), lr=0.01), config)
    for _ in range(4):
        train_step(sparsifier)
        assert_dead_blocks_are_zero(sparsifier)


def test_finish_trims_a_run_that_ends_early_and_is_idempotent():
    sparsifier = make(tiny_llama())
    for _ in range(5):
        train_step(sparsifier)
    assert sparsifier.sparsity_achieved < 0.75
    sparsifier.finish()
    assert sparsifier.sparsity_achieved == 0.75
    assert_dead_blocks_are_zero(sparsifier)
    masks = {name: mask.clone() for name, mask in sparsifier.masks.items()}
    train_step(sparsifier)
    sparsifier.finish()
    assert all(torch.equal(mask, masks[name]) for name, mask in sparsifier.masks.items())


def test_clipping_sees_live_gradients_alone():
    sparsifier = make(tiny_gpt2(), method="random", sparsity=0.9)
    loss_of(sparsifier.model, 0).backward()
    name = "transformer.h.0.mlp.c_fc"
    weight = sparsifier.model.get_submodule(name).weight
    live = weight.grad.t()[~dead_elements(sparsifier, name)].norm()
    assert weight.grad.norm() > 1.2 * live
    sparsifier.step()
    torch.testing.assert_close(weight.grad.norm(), live)


def test_a_nan_gradient_at_a_mask_update_is_refused_by_name():
    sparsifier = make(tiny_gpt2())
    loss_of(sparsifier.model, 0).backward()
    sparsifier.model.get_submodule("transformer.h.1.mlp.c_fc").weight.grad[3, 5] = float("nan")
    sparsifier.step()
    with pytest.raises(BlastError, match=r"step 0 the gradient of 'transformer.h.1.mlp.c_fc' is NaN .* in 1 of 64"):
        sparsifier.optimizer.step()


def test_a_missing_gradient_at_a_mask_update_is_refused():
    with pytest.raises(BlastError, match=r"no parameter has a gradient .* call sparsifier.step\(\) after backward"):
        make(tiny_gpt2()).step()


def test_a_block_that_does_not_divide_a_matrix_is_refused_by_name():
    with pytest.raises(BlastError, match=r"block 48 does not divide 'model.layers.0.mlp.gate_proj' of shape 128x64"):
        make(tiny_llama(), block=48)


def test_an_optimizer_of_another_model_is_refused():
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(BlastError, match="the optimizer holds none of the matrices"):
        Sparsifier(tiny_gpt2(), other, SparsifyConfig(sparsity=0.5, block=16, steps=4))


def test_a_replaced_layer_is_noticed():
    sparsifier = make(tiny_llama())
    sparsifier.model.model.layers[0].mlp.up_proj = nn.Linear(64, 128)
    with pytest.raises(BlastError, match=r"'model.layers.0.mlp.up_proj' was replaced"):
        sparsifier.step()
