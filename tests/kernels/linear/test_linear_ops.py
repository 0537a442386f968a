"""The operator of a linear layer: gradients, fake kernels, compilation and error messages."""

from __future__ import annotations

import blast_kernels.register  # noqa: F401
import pytest
import torch
import torch.nn.functional as F
from inference_cases import PATTERNS, Matrix, mask_of, matrix_of, relative_error

linear = torch.ops.blast.block_sparse_linear


def small(dtype: torch.dtype = torch.float32) -> Matrix:
    return matrix_of(mask_of("uniform", 3, 4), 16, 32, dtype)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("lead", [(), (5,), (2, 3)])
def test_operator_keeps_leading_dimensions(pattern, lead, device):
    matrix = matrix_of(mask_of(pattern, 3, 4), 16, 32, device=device)
    x, bias = torch.randn(*lead, 128, device=device), torch.randn(48, device=device)
    out = linear(x, matrix.values, *matrix.index, *matrix.t_index, bias)
    assert out.shape == (*lead, 48)
    assert relative_error(out, F.linear(x.double(), matrix.dense.double(), bias.double())) < 1e-6


@pytest.mark.parametrize("pattern", ["uniform", "empty_rows", "empty_columns", "one_block"])
def test_gradients_pass_gradcheck(pattern, device):
    matrix = matrix_of(mask_of(pattern, 3, 2), 2, 3, torch.float64, device)
    x = torch.randn(2, 2, 6, dtype=torch.float64, device=device, requires_grad=True)
    bias = torch.randn(6, dtype=torch.float64, device=device, requires_grad=True)
    values = matrix.values.requires_grad_()
    call = lambda x, values, bias: linear(x, values, *matrix.index, *matrix.t_index, bias)  # noqa: E731
    assert torch.autograd.gradcheck(call, (x, values, bias))


def test_operator_passes_opcheck_of_torch(device):
    matrix = matrix_of(mask_of("uniform", 3, 4), 16, 32, device=device)
    x = torch.randn(2, 128, device=device, requires_grad=True)
    arguments = (x, matrix.values.requires_grad_(), *matrix.index, *matrix.t_index, None)
    torch.library.opcheck(linear, arguments)


def test_strided_activations_are_accepted():
    matrix = small()
    x = torch.randn(128, 6).t()
    out = linear(x, matrix.values, *matrix.index, *matrix.t_index, None)
    assert relative_error(out, x @ matrix.dense.t()) < 1e-6


def test_no_tokens_give_an_empty_result():
    matrix = small()
    assert linear(torch.empty(0, 128), matrix.values, *matrix.index, *matrix.t_index, None).shape == (0, 48)


def test_it_compiles_as_one_graph_with_gradients(device):
    matrix = matrix_of(mask_of("uniform", 3, 4), 16, 32, device=device)

    def loss(x, values):
        return F.silu(linear(x, values, *matrix.index, *matrix.t_index, None)).square().sum()

    grads = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(0)
        x = torch.randn(5, 128, device=device, requires_grad=True)
        values = matrix.values.detach().clone().requires_grad_()
        function(x, values).backward()
        grads.append((x.grad, values.grad))
    assert relative_error(grads[1][0], grads[0][0]) < 1e-6
    assert relative_error(grads[1][1], grads[0][1]) < 1e-6


def change(position: int, tensor_of) -> list:
    matrix = small()
    arguments = [torch.randn(5, 128), matrix.values, *matrix.index, *matrix.t_index, torch.zeros(48)]
    arguments[position] = tensor_of(arguments[position])
    return arguments


@pytest.mark.parametrize(
    ("position", "tensor_of", "message"),
    [
        (0, lambda x: x.half(), "x is torch.float16 and values are torch.float32"),
        (0, lambda x: x[:, :96], "last dimension must be 128"),
        (1, lambda values: values.int(), "use one of float32"),
        (1, lambda values: values[0], r"must be \[nnz, b_out, b_in\]"),
        (1, lambda values: values.transpose(1, 2).contiguous().transpose(1, 2), "values must be contiguous"),
        (2, lambda offsets: offsets.long(), "row_offsets must be a contiguous int32 vector, not torch.int64"),
        (3, lambda indices: indices[1:], "entries for"),
        (6, lambda order: order.repeat_interleave(2)[::2], "t_order must be .* not contiguous"),
        (7, lambda bias: bias[1:], r"bias must be \[48\]"),
        (7, lambda bias: bias.double(), "not .48. torch.float64"),
    ],
)
def test_a_wrong_argument_is_named_in_one_sentence(position, tensor_of, message):
    with pytest.raises(ValueError, match=message) as caught:
        linear(*change(position, tensor_of))
    assert "\n" not in str(caught.value)
