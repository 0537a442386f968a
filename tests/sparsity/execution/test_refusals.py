"""Training that the sparse state does not support is refused in one sentence, or stays masked-dense."""

from __future__ import annotations

import pytest
import torch
from switch_cases import SETTINGS, dense_weights, nano, nano_loss, sparsify, steps
from torch import nn

from blast.errors import BlastError
from blast.sparsity.config import SparsifyConfig
from blast.sparsity.sparsifier import Sparsifier


def with_optimizer(optimizer, **settings) -> Sparsifier:
    model = nano("gpt2-nano")
    return Sparsifier(model, optimizer(model.parameters()), SparsifyConfig(**{**SETTINGS, **settings}))


@pytest.mark.parametrize("execution", ["masked", "sparse"])
def test_a_mask_update_inside_accumulation_is_refused(execution):
    ours = sparsify("gpt2-nano", execution=execution)
    steps(ours, 1)
    ours.optimizer.zero_grad()
    nano_loss(ours.model, 1).backward()
    ours.step()
    nano_loss(ours.model, 2).backward()
    with pytest.raises(BlastError, match=r"mask update is due at step 2, but neither optimizer.step\(\) nor zero_grad"):
        ours.step()


def test_a_step_that_a_scaler_skipped_is_no_accumulation():
    ours = sparsify("gpt2-nano", execution="sparse")
    steps(ours, 1)
    for seed in (1, 2):
        ours.optimizer.zero_grad()
        nano_loss(ours.model, seed).backward()
        ours.step()
    assert ours.step_count == 3


@pytest.mark.parametrize("execution", ["masked", "sparse"])
def test_a_nan_gradient_at_a_mask_update_is_refused_by_name(execution):
    ours = sparsify("gpt2-nano", execution=execution)
    steps(ours, 2)
    ours.optimizer.zero_grad()
    (nano_loss(ours.model, 2) * float("nan")).backward()
    before = dense_weights(ours.model)
    ours.step()
    with pytest.raises(BlastError, match=r"at step 2 the gradient of 'transformer.h.0.mlp.c_fc' is NaN or infinite"):
        ours.optimizer.step()
    assert all(torch.equal(weight, before[name]) for name, weight in dense_weights(ours.model).items())


def test_gradients_changed_before_the_update_are_refused():
    ours = sparsify("gpt2-nano", execution="sparse")
    steps(ours, 2)
    ours.optimizer.zero_grad()
    nano_loss(ours.model, 2).backward()
    nn.utils.clip_grad_norm_(ours.model.parameters(), 1e-3)
    with pytest.raises(BlastError, match=r"'transformer.h.0.mlp.c_fc' differs from .*; call .* right after backward"):
        ours.step()


def test_a_discarded_backward_pass_leaves_nothing_behind():
    clean, ours = sparsify("gpt2-nano", execution="sparse"), sparsify("gpt2-nano", execution="sparse")
    steps(clean, 2)
    steps(ours, 2)
    nano_loss(ours.model, 77).backward()
    expected, losses = steps(clean), steps(ours)
    assert losses == expected


def test_lbfgs_is_refused_before_anything_is_changed():
    for execution in ("masked", "sparse"):
        with pytest.raises(BlastError, match="LBFGS evaluates the model several times in one step"):
            with_optimizer(torch.optim.LBFGS, execution=execution)


def test_an_optimizer_whose_state_has_another_shape_is_refused_or_trained_masked():
    class RowWise(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                for parameter in group["params"]:
                    self.state[parameter]["row"] = torch.zeros(parameter.shape[0])
            return super().step(closure)

    def build(parameters):
        return RowWise(parameters, lr=0.01)

    ours = with_optimizer(build, execution="sparse", break_even=0.6)
    names = [name for name, _ in ours.model.named_parameters()]
    with pytest.raises(BlastError, match=r"RowWise keeps 'row' \(\[128\]\) for the weight \[128, 512\] of"):
        steps(ours)
    assert [name for name, _ in ours.model.named_parameters()] == names
    ours = with_optimizer(build, execution="auto", break_even=0.6)
    with pytest.warns(UserWarning, match="training stays masked-dense: RowWise keeps 'row'"):
        steps(ours)
    assert ours.execution == "masked"


def test_a_state_number_for_each_parameter_is_carried_over():
    ours = with_optimizer(lambda parameters: torch.optim.ASGD(parameters, lr=0.01), execution="sparse", break_even=0.6)
    steps(ours)
    layer = ours.model.transformer.h[0].mlp.c_fc
    state = ours.optimizer.state[layer.values]
    assert int(state["step"]) == ours.step_count
    assert state["ax"].shape == layer.values.shape


def test_an_unknown_way_of_execution_is_refused():
    with pytest.raises(BlastError, match="did you mean 'sparse'"):
        SparsifyConfig(**{**SETTINGS, "execution": "spars"})
    with pytest.raises(BlastError, match="'break_even' is 2"):
        SparsifyConfig(**{**SETTINGS, "break_even": 2})
