"""The dense gradient of a step is the sum over its backward passes, as the gradient of a dense weight is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from blast.layers.dense_gradient import DenseGradient


@pytest.fixture
def values():
    """One block, so that its own gradient is the dense one."""
    return nn.Parameter(torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(0)))


def output(values, dense_gradient, calls, seed):
    """What a model gives that calls one layer several times."""
    inputs = torch.randn(calls, 5, 4, generator=torch.Generator().manual_seed(seed))
    return sum(dense_gradient.record(x, x @ values[0].t()).square().sum() for x in inputs)


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_calls_and_backward_passes_of_a_step_add_up(values, calls):
    dense_gradient = DenseGradient(values)
    for seed in (1, 2):
        output(values, dense_gradient, calls, seed).backward()
        torch.testing.assert_close(dense_gradient.total, values.grad[0])


def test_zero_grad_begins_a_new_sum(values):
    dense_gradient = DenseGradient(values)
    for seed in (1, 2):
        values.grad = None
        output(values, dense_gradient, 2, seed).backward()
        torch.testing.assert_close(dense_gradient.total, values.grad[0])
