"""Gradients that are missing or not finite: training goes on, and the mask of what has none stays."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from blast.errors import BlastError
from blast.sparsity.config import SparsifyConfig
from blast.sparsity.sparsifier import Sparsifier

SETTINGS = {"sparsity": 0.5, "block": 8, "steps": 20, "update_every": 2, "initial_sparsity": 0.2}


class Mlp(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16))


class Layers(nn.Module):
    """Residual MLPs, of which some can be left out."""

    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Mlp() for _ in range(layers))

    def forward(self, x, skip=()):
        for index, layer in enumerate(self.layers):
            if index not in skip:
                x = x + layer(x)
        return x


def make(optimizer=torch.optim.AdamW, **settings) -> Sparsifier:
    model = Layers()
    return Sparsifier(model, optimizer(model.parameters(), lr=0.001), SparsifyConfig(**{**SETTINGS, **settings}))


def data(seed: int) -> torch.Tensor:
    return torch.randn(8, 16, generator=torch.Generator().manual_seed(seed))


def train(sparsifier: Sparsifier, steps: int, skip=lambda step: (), set_to_none: bool = True) -> None:
    for _ in range(steps):
        step = sparsifier.step_count
        sparsifier.model(data(step), skip(step)).square().mean().backward()
        sparsifier.step()
        sparsifier.optimizer.step()
        sparsifier.optimizer.zero_grad(set_to_none=set_to_none)


@pytest.mark.parametrize("execution", ["masked", "sparse"])
@pytest.mark.parametrize("ranking", ["matrix", "layer", "model"])
@pytest.mark.parametrize("grow", ["union", "swap"])
def test_a_layer_that_is_left_out_keeps_its_mask_and_catches_up(grow, ranking, execution):
    sparsifier = make(grow=grow, ranking=ranking, execution=execution)
    train(sparsifier, 4)
    before = sparsifier.masks
    train(sparsifier, 1, skip=lambda step: (1,))
    for name, mask in sparsifier.masks.items():
        same = torch.equal(mask, before[name])
        assert same or not name.startswith("layers.1"), name
        assert not (same and grow == "swap") or name.startswith("layers.1"), name
    train(sparsifier, 16, skip=lambda step: (step % 3,))
    assert sparsifier.finished
    assert sparsifier.sparsity_achieved == 0.5
    assert sparsifier.execution == execution


@pytest.mark.parametrize("execution", ["masked", "sparse"])
def test_gradients_that_are_zero_instead_of_none_keep_the_mask_too(execution):
    sparsifier = make(execution=execution, grow="swap")
    train(sparsifier, 4, set_to_none=False)
    before = sparsifier.masks
    train(sparsifier, 1, skip=lambda step: (1,), set_to_none=False)
    assert torch.equal(sparsifier.masks["layers.1.0"], before["layers.1.0"])
    assert not torch.equal(sparsifier.masks["layers.2.0"], before["layers.2.0"])


def test_masks_that_stay_leave_the_rest_of_the_budget_to_the_others():
    sparsifier = make(grow="swap", ranking="model")
    train(sparsifier, 5)
    train(sparsifier, 3, skip=lambda step: (1,))
    assert sparsifier.sparsity_achieved == pytest.approx(sparsifier.sparsity_target, abs=0.01)


def test_random_growth_needs_no_gradient():
    sparsifier = make(grow="swap", grow_score="random")
    train(sparsifier, 4)
    before = sparsifier.masks["layers.1.0"]
    train(sparsifier, 1, skip=lambda step: (1,))
    assert not torch.equal(sparsifier.masks["layers.1.0"], before)


def test_a_model_without_any_gradient_is_a_mistake():
    sparsifier = make()
    with pytest.raises(BlastError, match="no parameter has a gradient at the mask update of step 0"):
        sparsifier.step()


@pytest.mark.parametrize("execution", ["masked", "sparse"])
def test_a_step_that_leaves_out_every_matrix_keeps_all_masks(execution):
    model = Layers()
    model.scale = nn.Parameter(torch.ones(()))
    config = SparsifyConfig(**{**SETTINGS, "execution": execution})
    sparsifier = Sparsifier(model, torch.optim.AdamW(model.parameters()), config)
    train(sparsifier, 4)
    masks = sparsifier.masks
    (model(data(0), range(3)) * model.scale).sum().backward()
    sparsifier.step()
    sparsifier.optimizer.step()
    sparsifier.optimizer.zero_grad()
    assert all(torch.equal(mask, sparsifier.masks[name]) for name, mask in masks.items())
    train(sparsifier, 15)
    assert sparsifier.sparsity_achieved == 0.5


def scaled_training(sparsifier: Sparsifier, scaler, steps: int, unscale: bool, dtype=torch.float16) -> int:
    """Trains under a gradient scaler; returns the number of steps that it skipped."""
    skipped = 0
    for _ in range(steps):
        with torch.autocast("cpu", dtype=dtype):
            loss = sparsifier.model(data(sparsifier.step_count)).square().mean()
        scaler.scale(loss).backward()
        if unscale:
            scaler.unscale_(sparsifier.optimizer)
        sparsifier.step()
        scaler.step(sparsifier.optimizer)
        before = scaler.get_scale()
        scaler.update()
        skipped += scaler.get_scale() < before
        sparsifier.optimizer.zero_grad()
    return skipped


@pytest.mark.parametrize("execution", ["masked", "sparse"])
@pytest.mark.parametrize("unscale", [False, True])
def test_an_update_waits_while_a_gradient_scaler_skips_steps(execution, unscale):
    sparsifier = make(execution=execution, steps=60)
    masks = sparsifier.masks
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    assert scaled_training(sparsifier, scaler, 1, unscale) == 1
    assert sparsifier.update_due
    assert all(torch.equal(mask, masks[name]) for name, mask in sparsifier.masks.items())
    skipped = scaled_training(sparsifier, scaler, 59, unscale)
    assert 5 < skipped < 55
    assert sparsifier.finished
    assert sparsifier.sparsity_achieved == 0.5
    assert all(parameter.isfinite().all() for parameter in sparsifier.model.parameters())


def test_a_fused_optimizer_skips_the_step_by_itself():
    def fused(parameters, lr):
        return torch.optim.AdamW(parameters, lr=lr, fused=True)

    sparsifier = make(fused, steps=60)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    assert scaled_training(sparsifier, scaler, 60, unscale=False) > 5
    assert sparsifier.finished
    assert all(parameter.isfinite().all() for parameter in sparsifier.model.parameters())


def test_grown_blocks_get_an_unscaled_gradient():
    """Unscaled gradients and untouched ones train the same weights, up to rounding."""
    plain, unscaled = (make(torch.optim.SGD, execution="sparse", grow="swap") for _ in range(2))
    train(plain, 20)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    for _ in range(20):
        scaler.scale(unscaled.model(data(unscaled.step_count)).square().mean()).backward()
        scaler.unscale_(unscaled.optimizer)
        unscaled.step()
        scaler.step(unscaled.optimizer)
        scaler.update()
        unscaled.optimizer.zero_grad()
    assert all(torch.equal(mask, unscaled.masks[name]) for name, mask in plain.masks.items())
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(unscaled.model.state_dict()[name], value)


def test_waiting_for_finite_gradients_ends_with_an_error():
    sparsifier = make(update_every=100, steps=200)

    def run() -> None:
        for _ in range(100):
            (sparsifier.model(data(0)) * float("inf")).sum().backward()
            sparsifier.step()
            sparsifier.optimizer.zero_grad()

    with pytest.raises(BlastError, match=r"the gradient of 'layers.0.0' is NaN or infinite"):
        run()
    assert 40 < sparsifier.step_count < 100


@pytest.mark.parametrize("execution", ["masked", "sparse"])
def test_a_batch_that_the_loop_throws_away_leaves_nothing_behind(execution):
    clean, ours = make(execution=execution), make(execution=execution)
    train(clean, 3)
    train(ours, 3)
    # Step 3 updates nothing, step 4 does: the loop drops it, and the update follows in the next step.
    for sparsifier, factor in ((clean, 1.0), (ours, float("nan"))):
        train(sparsifier, 1)
        (sparsifier.model(data(99)).square().mean() * factor).backward()
        sparsifier.step()
        sparsifier.optimizer.zero_grad(set_to_none=False)
    assert not clean.update_due
    assert ours.update_due
    train(ours, 15)
    assert ours.finished
    assert ours.sparsity_achieved == 0.5
    assert all(parameter.isfinite().all() for parameter in ours.model.parameters())


def test_a_postponed_update_is_part_of_the_saved_state():
    sparsifier = make()
    (sparsifier.model(data(0)) * float("inf")).sum().backward()
    sparsifier.step()
    resumed = make()
    resumed.load_state_dict(sparsifier.state_dict())
    assert resumed.step_count == 1
    assert resumed.update_due
    old = {key: value for key, value in sparsifier.state_dict().items() if key != "postponed"}
    resumed.load_state_dict(old)
    assert not resumed.update_due


def test_weights_that_are_not_finite_raise_at_once():
    sparsifier = make()
    train(sparsifier, 2)
    with torch.no_grad():
        sparsifier.model.layers[0][0].weight[0, 0] = float("nan")
    with pytest.raises(BlastError, match=r"the weight of 'layers.0.0' is NaN"):
        train(sparsifier, 1)


def test_an_overflow_in_dead_blocks_alone_waits_and_lets_the_optimizer_step():
    sparsifier = make(initial_sparsity=0.4, steps=200)
    train(sparsifier, 2)
    masks = sparsifier.masks
    row, col = (~masks["layers.0.0"]).nonzero()[0].tolist()

    def run(steps: int) -> None:
        for _ in range(steps):
            sparsifier.model(data(0)).square().mean().backward()
            sparsifier.model.layers[0][0].weight.grad[8 * row, 8 * col] = float("inf")
            sparsifier.step()
            sparsifier.optimizer.step()
            sparsifier.optimizer.zero_grad()

    with pytest.warns(UserWarning, match="has waited for 64 steps, because the gradients of dead blocks overflow"):
        run(70)
    assert all(torch.equal(mask, sparsifier.masks[name]) for name, mask in masks.items())
    train(sparsifier, 8)
    assert any(not torch.equal(mask, sparsifier.masks[name]) for name, mask in masks.items())
    sparsifier.finish()
    assert sparsifier.finished
    assert all(parameter.isfinite().all() for parameter in sparsifier.model.parameters())
