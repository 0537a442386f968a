"""The operator of a block-sparse linear layer, with fake kernels and gradients.

On CUDA it runs Triton kernels (`triton_kernels`), on a CPU C++ kernels (`blast_kernels.cpu`), and where neither fits
plain PyTorch (`reference`). On a CPU the gradients are those of the reference.

    y = torch.ops.blast.block_sparse_linear(
        x,            # [..., cols * b_in]      float32 | float16 | bfloat16 | float64
        values,       # [nnz, b_out, b_in]      live blocks, block row by block row; dtype of x
        row_offsets,  # [rows + 1] int32        block row r owns blocks row_offsets[r] .. row_offsets[r + 1]
        col_indices,  # [nnz] int32             block column of each block
        t_offsets,    # [cols + 1] int32        row_offsets of the transposed matrix
        t_indices,    # [nnz] int32             col_indices of the transposed matrix (block rows of this one)
        t_order,      # [nnz] int32             where each block of the transposed matrix lies in `values`
        bias,         # [rows * b_out] or None
    )                 # -> [..., rows * b_out]  contiguous, dtype of x

The three `t_` tensors are needed for the gradient of `x`, and give the number of block columns. Block values are never
copied in transposed form. Gradients exist for `x`, `values` and `bias`; that of `values` is computed for live blocks
only. `x` may have any strides. Every call checks dtype, device, shape and contiguity. No call reads an index: the code
that builds an index checks it once. `import blast_kernels.register` registers all operators.
"""

from __future__ import annotations

import torch
from blast_kernels.common.checks import check_bias, check_index, check_product
from blast_kernels.common.output import unflatten
from blast_kernels.cpu import batched
from blast_kernels.cpu import launch as cpu
from blast_kernels.linear import reference
from torch import Tensor

try:
    from blast_kernels.linear import triton_kernels
except ImportError:  # Triton exists for Linux only; the reference runs everywhere.
    triton_kernels = None


@torch.library.custom_op("blast::block_sparse_linear", mutates_args=())
def block_sparse_linear(
    x: Tensor,
    values: Tensor,
    row_offsets: Tensor,
    col_indices: Tensor,
    t_offsets: Tensor,
    t_indices: Tensor,
    t_order: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """`x · Wᵀ + bias`; arguments as listed at the top of this module.

    Raises:
        ValueError: if a dtype, device, shape or layout is wrong; one sentence with what was found.
    """
    cols = t_offsets.numel() - 1
    check_product(x, values, row_offsets, col_indices, cols)
    for name, index in (("t_offsets", t_offsets), ("t_indices", t_indices), ("t_order", t_order)):
        check_index(name, index, values)
    out_features = (row_offsets.numel() - 1) * values.shape[1]
    check_bias(bias, out_features, x)
    flat = x.reshape(-1, x.shape[-1]).contiguous()
    if _runs_on_triton(flat, *values.shape[1:]):
        out = triton_kernels.block_matmul(flat, values, row_offsets, col_indices, bias)
    elif cpu.supports(flat, values):
        out = cpu.linear(flat, values, row_offsets, col_indices, bias)
    elif batched.pays(flat):
        out = batched.linear(flat, values, row_offsets, col_indices, bias)
    else:
        out = reference.block_matmul(flat, values, row_offsets, col_indices, bias)
    return unflatten(out, x)


@block_sparse_linear.register_fake
def _(x, values, row_offsets, col_indices, t_offsets, t_indices, t_order, bias=None):
    return x.new_empty(*x.shape[:-1], (row_offsets.shape[0] - 1) * values.shape[1])


@torch.library.custom_op("blast::block_sparse_input_grad", mutates_args=())
def block_sparse_input_grad(
    grad: Tensor,
    values: Tensor,
    row_offsets: Tensor,
    col_indices: Tensor,
    t_offsets: Tensor,
    t_indices: Tensor,
    t_order: Tensor,
) -> Tensor:
    """`grad · W`: `[…, rows · b_out]` to `[…, cols · b_in]`."""
    flat = grad.reshape(-1, grad.shape[-1]).contiguous()
    if _runs_on_triton(flat, *values.shape[1:]):
        out = triton_kernels.input_grad(flat, values, t_offsets, t_indices, t_order)
    else:
        out = reference.input_grad(flat, values, row_offsets, col_indices, t_offsets.numel() - 1)
    return unflatten(out, grad)


@block_sparse_input_grad.register_fake
def _(grad, values, row_offsets, col_indices, t_offsets, t_indices, t_order):
    return grad.new_empty(*grad.shape[:-1], (t_offsets.shape[0] - 1) * values.shape[2])


@torch.library.custom_op("blast::block_sparse_value_grad", mutates_args=())
def block_sparse_value_grad(
    grad: Tensor, x: Tensor, row_offsets: Tensor, col_indices: Tensor, b_out: int, b_in: int
) -> Tensor:
    """`gradᵀ · x` on the live blocks: `[nnz, b_out, b_in]`."""
    operands = grad.reshape(-1, grad.shape[-1]).contiguous(), x.reshape(-1, x.shape[-1]).contiguous()
    module = triton_kernels if _runs_on_triton(operands[1], b_out, b_in) else reference
    return module.value_grad(*operands, row_offsets, col_indices, b_out, b_in)


@block_sparse_value_grad.register_fake
def _(grad, x, row_offsets, col_indices, b_out, b_in):
    return x.new_empty(col_indices.shape[0], b_out, b_in)


def _save_for_backward(ctx, inputs, output) -> None:
    x, values, row_offsets, col_indices, t_offsets, t_indices, t_order, bias = inputs
    ctx.save_for_backward(x, values, row_offsets, col_indices, t_offsets, t_indices, t_order)
    ctx.has_bias = bias is not None


def _backward(ctx, grad):
    x, values, row_offsets, col_indices, t_offsets, t_indices, t_order = ctx.saved_tensors
    grad_x = grad_values = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = torch.ops.blast.block_sparse_input_grad(
            grad, values, row_offsets, col_indices, t_offsets, t_indices, t_order
        )
    if ctx.needs_input_grad[1]:
        grad_values = torch.ops.blast.block_sparse_value_grad(
            grad, x, row_offsets, col_indices, values.shape[1], values.shape[2]
        )
    if ctx.has_bias and ctx.needs_input_grad[7]:
        grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0)
    return grad_x, grad_values, None, None, None, None, None, grad_bias


def _runs_on_triton(x: Tensor, b_out: int, b_in: int) -> bool:
    return x.is_cuda and triton_kernels is not None and triton_kernels.supports(x.dtype, b_out, b_in)


block_sparse_linear.register_autograd(_backward, setup_context=_save_for_backward)
