"""The PyTorch references equal dense linear algebra."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from blast_kernels.common.dense import apply_activation, to_dense
from blast_kernels.linear import reference
from inference_cases import PATTERNS, mask_of, matrix_of, relative_error

BLOCKS = [(16, 16), (32, 128), (3, 5)]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_product_equals_the_dense_product(pattern, block):
    matrix = matrix_of(mask_of(pattern, 5, 4), *block, torch.float64)
    x = torch.randn(7, matrix.dense.shape[1], dtype=torch.float64)
    bias = torch.randn(matrix.dense.shape[0], dtype=torch.float64)
    out = reference.block_matmul(x, matrix.values, *matrix.index, bias)
    assert relative_error(out, F.linear(x, matrix.dense, bias)) < 1e-14


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_gradients_equal_the_dense_gradients_in_live_blocks(pattern, block):
    mask = mask_of(pattern, 5, 4)
    matrix = matrix_of(mask, *block, torch.float64)
    x, grad = (torch.randn(7, n, dtype=torch.float64) for n in reversed(matrix.dense.shape))
    grad_x = reference.input_grad(grad, matrix.values, *matrix.index, 4)
    assert relative_error(grad_x, grad @ matrix.dense) < 1e-14
    tiles = (grad.t() @ x).view(5, block[0], 4, block[1]).transpose(1, 2)
    grad_values = reference.value_grad(grad, x, *matrix.index, *block)
    assert relative_error(grad_values, tiles[mask]) < 1e-14


def test_to_dense_puts_every_block_in_its_place():
    matrix = matrix_of(mask_of("uniform", 4, 6), 16, 32)
    assert torch.equal(to_dense(matrix.values, *matrix.index, 6), matrix.dense)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32_and_rounded_once(dtype):
    matrix = matrix_of(mask_of("full", 2, 64), 16, 16, dtype)
    x = torch.randn(5, 1024).to(dtype)
    exact = x.double() @ matrix.dense.double().t()
    out = reference.block_matmul(x, matrix.values, *matrix.index, None)
    assert relative_error(out, exact) < 1.01 * relative_error(exact.to(dtype), exact)


def test_equal_calls_give_equal_bits():
    matrix = matrix_of(mask_of("skewed_rows", 6, 6), 16, 16)
    x = torch.randn(33, 96)
    first, second = (reference.block_matmul(x, matrix.values, *matrix.index, None) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", ["tanh", "elu"])
def test_unknown_activation_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"'{name}' is unknown"):
        apply_activation(torch.zeros(1), name)
