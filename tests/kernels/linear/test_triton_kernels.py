"""The Triton kernels of a linear layer agree with the reference: in the interpreter, or on the GPU if there is one."""

from __future__ import annotations

import pytest
import torch
from blast_kernels.linear import reference, triton_kernels
from inference_cases import PATTERNS, mask_of, matrix_of, relative_error

BOUND = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
BLOCKS = [(16, 16), (32, 32), (64, 64), (128, 128), (32, 128), (64, 128)]


def check(matrix, tokens: int, dtype: torch.dtype, device: str, with_bias: bool) -> None:
    x = torch.randn(tokens, matrix.dense.shape[1]).to(device, dtype)
    bias = torch.randn(matrix.dense.shape[0]).to(device, dtype) if with_bias else None
    out = triton_kernels.block_matmul(x, matrix.values, *matrix.index, bias)
    wide = None if bias is None else bias.float()
    expected = reference.block_matmul(x.float(), matrix.values.float(), *matrix.index, wide)
    assert out.dtype == dtype
    assert relative_error(out, expected) < BOUND[dtype]


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("block", BLOCKS)
def test_products_of_every_block_shape_and_dtype(block, dtype, device):
    check(matrix_of(mask_of("uniform", 3, 3), *block, dtype, device), 37, dtype, device, True)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_products_of_every_mask_pattern(pattern, device):
    check(matrix_of(mask_of(pattern, 4, 5), 32, 32, torch.float16, device), 20, torch.float16, device, False)


@pytest.mark.parametrize("tokens", [1, 2, 15, 16, 17, 129])
def test_numbers_of_tokens_that_do_not_fill_a_tile(tokens, device):
    check(matrix_of(mask_of("uniform", 2, 3), 64, 64, torch.float16, device), tokens, torch.float16, device, True)


def test_a_matrix_without_live_blocks_gives_the_bias(device):
    matrix = matrix_of(torch.zeros(2, 2, dtype=torch.bool), 16, 16, torch.float16, device)
    check(matrix, 5, torch.float16, device, True)


def test_a_batch_without_tokens_launches_nothing(device, monkeypatch):
    matrix = matrix_of(mask_of("uniform", 2, 3), 32, 32, torch.float16, device)
    monkeypatch.setattr(triton_kernels, "_block_matmul", None)
    out = triton_kernels.block_matmul(
        torch.empty(0, 96, dtype=torch.float16, device=device), matrix.values, *matrix.index, None
    )
    assert out.shape == (0, 64)


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("block", BLOCKS)
def test_gradients_of_every_block_shape_and_dtype(block, dtype, device):
    check_gradients(matrix_of(mask_of("uniform", 3, 3), *block, dtype, device), 37, dtype, device)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("tokens", [1, 16, 130])
def test_gradients_of_every_mask_pattern(pattern, tokens, device):
    check_gradients(matrix_of(mask_of(pattern, 4, 5), 32, 64, torch.float16, device), tokens, torch.float16, device)


def check_gradients(matrix, tokens: int, dtype: torch.dtype, device: str) -> None:
    b_out, b_in = matrix.values.shape[1:]
    out_features, in_features = matrix.dense.shape
    x, grad = (torch.randn(tokens, n).to(device, dtype) for n in (in_features, out_features))
    grad_x = triton_kernels.input_grad(grad, matrix.values, *matrix.t_index)
    assert relative_error(grad_x, grad.float() @ matrix.dense.float()) < BOUND[dtype]
    grad_values = triton_kernels.value_grad(grad, x, *matrix.index, b_out, b_in)
    expected = reference.value_grad(grad.float(), x.float(), *matrix.index, b_out, b_in)
    assert relative_error(grad_values, expected) < BOUND[dtype]


@pytest.mark.gpu
def test_more_elements_than_an_int32_counts(device):
    # With 2^31 elements, an int32 product of token and width would overflow.
    matrix = matrix_of(torch.eye(256, dtype=torch.bool), 64, 64, torch.bfloat16, device)
    x = torch.randn(2**17 + 3, 2**14, device=device, dtype=torch.bfloat16)
    out = triton_kernels.block_matmul(x, matrix.values, *matrix.index, None)
    tail = slice(2**17 - 61, None)
    assert relative_error(out[tail], x[tail].float() @ matrix.dense.float().t()) < BOUND[torch.bfloat16]
