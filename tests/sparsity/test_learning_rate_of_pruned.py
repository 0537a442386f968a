"""The learning rate of pruned matrices, and second moments as a keep score."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import blast
from blast.errors import BlastError
from blast.sparsity.learning_rate import DensityScaledRates


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16)))


def config(**settings):
    return blast.SparsifyConfig(**{"sparsity": 0.75, "block": 8, "steps": 20, "update_every": 2, **settings})


def train(model, optimizer, sparsifier, steps, execution=None):
    torch.manual_seed(1)
    for _ in range(steps):
        model(torch.randn(8, 16)).square().mean().backward()
        sparsifier.step()
        optimizer.step()
        optimizer.zero_grad()


def test_only_the_pruned_matrices_learn_faster_by_the_power_of_the_density():
    """SGD without momentum moves a weight by its rate times its gradient."""
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = blast.Sparsifier(model, optimizer, config(schedule="constant", grow="none", lr_density_power=0.5))
    assert sparsifier.sparsity_achieved == 0.75
    for _ in range(3):
        model(torch.randn(8, 16)).square().mean().backward()
        sparsifier.step()
        before = [parameter.detach().clone() for parameter in model.parameters()]
        gradients = [parameter.grad.clone() for parameter in model.parameters()]
        optimizer.step()
        for name, old, gradient in zip(dict(model.named_parameters()), before, gradients, strict=True):
            rate = 0.1 * 2 if name in ("1.0.weight", "1.2.weight") else 0.1
            assert torch.allclose(model.get_parameter(name), old - rate * gradient, atol=1e-7), name
        assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1]
        optimizer.zero_grad()


def test_a_scheduler_made_afterwards_sets_the_rate_of_all_groups():
    model = small()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    sparsifier = blast.Sparsifier(model, optimizer, config(lr_density_power=0.25))
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.5, total_iters=20)
    for _ in range(20):
        train(model, optimizer, sparsifier, 1)
        scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.05])
    assert len(optimizer.param_groups[1]["params"]) == 2


def test_a_scheduler_made_before_is_refused_and_the_optimizer_unchanged():
    model = small()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    torch.optim.lr_scheduler.LinearLR(optimizer)
    with pytest.raises(BlastError, match="existing learning-rate scheduler does not know; create the scheduler after"):
        blast.Sparsifier(model, optimizer, config(lr_density_power=0.25))
    assert len(optimizer.param_groups) == 1
    blast.Sparsifier(model, optimizer, config())


def test_without_a_power_nothing_changes():
    runs = []
    for power in (0.0, 0.25):
        model = small()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        train(model, optimizer, blast.Sparsifier(model, optimizer, config(lr_density_power=power)), 20)
        runs.append((model, len(optimizer.param_groups)))
    assert [groups for _, groups in runs] == [1, 2]
    assert not torch.equal(runs[0][0][1][0].weight, runs[1][0][1][0].weight)


def test_masked_and_sparse_training_agree():
    outputs = []
    for execution in ("masked", "sparse"):
        model = small().double()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        settings = config(lr_density_power=0.25, keep_score="second_moment", execution=execution)
        sparsifier = blast.Sparsifier(model, optimizer, settings)
        torch.manual_seed(1)
        for _ in range(20):
            model(torch.randn(8, 16, dtype=torch.float64)).square().mean().backward()
            sparsifier.step()
            optimizer.step()
            optimizer.zero_grad()
        assert sparsifier.execution == execution
        outputs.append((sparsifier.masks, blast.to_dense(model)(torch.ones(1, 16, dtype=torch.float64))))
    assert all(torch.equal(outputs[0][0][name], outputs[1][0][name]) for name in outputs[0][0])
    assert torch.allclose(outputs[0][1], outputs[1][1], atol=1e-9)


@pytest.mark.parametrize("execution", ["masked", "sparse"])
def test_a_resumed_run_still_scales_the_rate(execution):
    """`Optimizer.load_state_dict` makes new parameter groups."""
    settings = config(lr_density_power=0.5, execution=execution, initial_sparsity=0.5)
    runs = []
    for cut in (None, 9):
        model = small()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        sparsifier = blast.Sparsifier(model, optimizer, settings)
        for step in range(16):
            if step == cut:
                saved = sparsifier.state_dict(), model.state_dict(), optimizer.state_dict()
                model = small()
                optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
                sparsifier = blast.Sparsifier(model, optimizer, settings)
                for part, state in zip((sparsifier, model, optimizer), copy.deepcopy(saved), strict=True):
                    part.load_state_dict(state)
            torch.manual_seed(step)
            model(torch.randn(8, 16)).square().mean().backward()
            sparsifier.step()
            optimizer.step()
            optimizer.zero_grad()
        runs.append(dict(blast.to_dense(model).named_parameters()))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_rates_that_are_tensors_are_scaled_by_a_tensor_that_follows_the_density():
    rate = torch.tensor(0.1)
    rates = DensityScaledRates(0.5)
    rates.groups = [{"lr": rate}]
    for density, expected in ((1.0, 0.1), (0.25, 0.2), (0.04, 0.5)):
        rates.set_density(density)
        rates.scale()
        rates.scale()  # a wrapper and its optimizer both call it
        assert rates.groups[0]["lr"].item() == pytest.approx(expected)
        rates.restore()
        assert rates.groups[0]["lr"] is rate


def test_second_moments_rank_blocks_by_weight_times_the_root_of_the_moment():
    model = small()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.001)
    settings = config(keep_score="second_moment", schedule="linear", grow="none", update_every=5, ranking="model")
    sparsifier = blast.Sparsifier(model, optimizer, settings)
    train(model, optimizer, sparsifier, 5)
    first, scores = model[1][0].weight, {}
    for name in ("1.0", "1.2"):
        weight = model.get_submodule(name).weight
        saliency = weight.detach().square() * optimizer.state[weight]["exp_avg_sq"]
        rows, cols = weight.shape[0] // 8, weight.shape[1] // 8
        scores[name] = saliency.view(rows, 8, cols, 8).sum((1, 3)).flatten()
    assert optimizer.state[first]["exp_avg_sq"].count_nonzero()
    model(torch.randn(8, 16)).square().mean().backward()
    sparsifier.step()
    both = torch.cat(list(scores.values()))
    live = torch.cat([sparsifier.masks[name].flatten() for name in scores])
    assert 0 < live.sum() < len(live)
    assert both[live].min() > both[~live].max()


def test_an_optimizer_without_second_moments_is_refused_by_that_score():
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier = blast.Sparsifier(model, optimizer, config(keep_score="second_moment"))
    with pytest.raises(BlastError, match="needs the second moments of Adam, which SGD does not keep; use AdamW"):
        train(model, optimizer, sparsifier, 4)


def test_a_keep_score_of_one_shot_pruning_is_refused_in_training():
    model = small()
    with pytest.raises(BlastError, match="'wanda' needs a calibration, which only one-shot pruning makes; take"):
        blast.Sparsifier(model, torch.optim.AdamW(model.parameters()), config(keep_score="wanda"))
