"""One-shot blocks that compensate, and the moments that they need."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from blast.block_sparse.blocks import BlockShape
from blast.errors import BlastError
from blast.model.discovery import match_matrices
from blast.sparsity.calibration import input_moments
from blast.sparsity.compensation import block_saliency, damped_inverse, remove_blocks_

BLOCK = BlockShape(4, 8)


@pytest.fixture
def layer():
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(24, 24, generator=generator, dtype=torch.float64) / 5
    x = torch.randn(500, 24, generator=generator, dtype=torch.float64) @ (torch.eye(24) + mix)
    return torch.randn(8, 24, generator=generator, dtype=torch.float64), x, x.t() @ x / len(x)


def error(weight, changed, x):
    return ((weight - changed) @ x.t()).square().sum(0).mean().item()


def test_saliency_is_the_error_that_the_best_compensation_leaves(layer):
    weight, x, moment = layer
    found = block_saliency(weight, torch.linalg.inv(moment), BLOCK)
    for row, column in [(0, 0), (1, 2)]:
        # Least squares by hand: the rows of this block row, from all other columns.
        rows, columns = slice(4 * row, 4 * row + 4), [c for c in range(24) if c // 8 != column]
        best = torch.linalg.lstsq(x[:, columns], x @ weight[rows].t()).solution.t()
        left = (x @ weight[rows].t() - x[:, columns] @ best.t()).square().sum(1).mean()
        assert found[row, column].item() == pytest.approx(left.item(), rel=1e-5)


def test_removing_the_first_column_of_blocks_is_least_squares_over_the_rest(layer):
    weight, x, moment = layer
    changed, mask = weight.clone(), torch.ones(2, 3, dtype=torch.bool)
    mask[0, 0] = False
    remove_blocks_(changed, mask, torch.linalg.inv(moment), BLOCK)
    best = torch.linalg.lstsq(x[:, 8:], x @ weight[:4].t()).solution.t()
    assert torch.allclose(changed[:4, 8:], best, atol=1e-8)
    assert torch.equal(changed[4:], weight[4:])
    assert changed[:4, :8].count_nonzero() == 0


def test_compensation_costs_less_than_removal_alone(layer):
    weight, x, moment = layer
    mask = torch.tensor([[True, False, True], [False, True, True]])
    whole = mask.repeat_interleave(4, 0).repeat_interleave(8, 1)
    changed = weight.clone()
    remove_blocks_(changed, mask, damped_inverse(moment), BLOCK)
    assert torch.equal(changed != 0, whole)
    assert error(weight, changed, x) < 0.8 * error(weight, weight * whole, x)


def test_dependent_inputs_are_damped(layer):
    weight, x, _ = layer
    x = x.clone()
    x[:, 8:16] = x[:, :8]
    inverse = damped_inverse(x.t() @ x / len(x))
    assert bool(inverse.isfinite().all())
    changed, mask = weight.clone(), torch.tensor([[False, True, True], [True, True, True]])
    remove_blocks_(changed, mask, inverse, BLOCK)
    assert error(weight, changed, x) < 1e-2 * error(weight, weight * (changed != 0), x)


def test_moments_are_means_over_all_tokens_and_leave_the_model_alone():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 8)).train()
    batches = [torch.randn(2, 3, 8), torch.randn(1, 3, 8)]
    targets = match_matrices(model, "*")
    found = input_moments(model, targets, batches, lambda m, x: m(x))
    full = input_moments(model, targets, batches, lambda m, x: m(x), full=True)
    x = torch.cat([batch.flatten(0, 1) for batch in batches])
    hidden = model[1](model[0](x))
    assert torch.allclose(found["0"], x.square().mean(0), atol=1e-6)
    assert torch.allclose(full["3"], (hidden.t() @ hidden / 9).detach(), atol=1e-6)
    assert torch.allclose(full["3"].diagonal(), found["3"], atol=1e-6)
    assert model.training
    assert not model[0]._forward_pre_hooks


def test_a_matrix_without_inputs_and_an_input_that_is_not_finite_are_refused():
    model = nn.ModuleList([nn.Linear(8, 16), nn.Linear(16, 8)])
    targets = match_matrices(model, "*")
    with pytest.raises(BlastError, match="no token of the calibration reached '1'; give more batches"):
        input_moments(model, targets, [torch.randn(2, 8)], lambda m, x: m[0](x))
    with pytest.raises(BlastError, match="an input of '0' is NaN or infinite"):
        input_moments(model, targets, [torch.full((2, 8), torch.inf)], lambda m, x: m[1](m[0](x)))
