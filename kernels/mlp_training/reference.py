"""Reference of the training kernels in plain PyTorch. Tests compare the kernels with it, and the CPU runs it.

Row lists and block groups are described in `index_lists`. Half-precision operands are multiplied and summed in float32,
and results are rounded once.
"""

from __future__ import annotations

import math

import torch
from blast_kernels.common.dense import apply_activation, compute_dtype
from torch import Tensor


def gate_up(
    x: Tensor, values: list[Tensor], row_lists: Tensor, bias: Tensor | None, activation: str, gate: str
) -> tuple[Tensor, Tensor]:
    """Pre-activations and hidden activations of the live hidden blocks.

    Args:
        x: `[tokens, in]`.
        values: Blocks `[nnz, b_hidden, b_in]` of gate and up, or of up alone.
        row_lists: `IndexLists.gate_up`.
        bias: `[hidden]` (dead blocks included) or None; None with a gate.
        activation: `none`, `silu`, `gelu` or `gelu_tanh`.
        gate: One of `constants.GATES`.

    Returns:
        `pre [tokens, live · b_hidden]`, with a gate `[tokens, 2 · live · b_hidden]` (gate, then up), and
        `hidden [tokens, live · b_hidden]`. Both are in the dtype of `x`.
    """
    compute = compute_dtype(x.dtype)
    b_hidden, b_in = values[0].shape[1:]
    live = row_lists.shape[0]
    inputs = x.to(compute).split(b_in, dim=1)
    blocks = [v.to(compute).transpose(1, 2) for v in values]
    pre = torch.zeros(x.shape[0], len(values) * live * b_hidden, dtype=compute, device=x.device)
    outputs = pre.split(b_hidden, dim=1)
    biases = None if bias is None else bias.to(compute).split(b_hidden)
    for row, first, count, label, *entries in row_lists.tolist():
        if biases is not None:
            outputs[row].add_(biases[label])
        for n, (position, column) in enumerate(_pairs(entries, count)):
            if gate == "tied":
                outputs[row].addmm_(inputs[column], blocks[0][position])
                outputs[live + row].addmm_(inputs[column], blocks[1][position])
            else:
                outputs[row if n < first else live + row].addmm_(inputs[column], blocks[int(n >= first)][position])
    pre = pre.to(x.dtype)
    return pre, hidden_activations(pre, activation, len(values) == 2)


def hidden_activations(pre: Tensor, activation: str, gated: bool) -> Tensor:
    """Hidden activations from rounded pre-activations."""
    wide = pre.to(compute_dtype(pre.dtype))
    if not gated:
        return apply_activation(wide, activation).to(pre.dtype)
    gate, up = wide.chunk(2, dim=1)
    return (apply_activation(gate, activation) * up).to(pre.dtype)


def gather_matmul(x: Tensor, values: list[Tensor], row_lists: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    """`Σ x[column] · block[position]` over the row list of each output block, plus a bias.

    Args:
        x: `[tokens, columns · side]`.
        values: Blocks `[nnz, b_out, b_in]` of one or two matrices; the first `first` entries of a list use the first.
        row_lists: `IndexLists.down`, or `input_grad` or `hidden_grad` if transposed. Every output block has a list.
        bias: `[outputs]` or None.
        transposed: Whether each block is used as its transpose.

    Returns:
        `[tokens, lists · b_out]`, transposed `[tokens, lists · b_in]`, in the dtype of `x`.
    """
    compute = compute_dtype(x.dtype)
    b_out, b_in = values[0].shape[1:]
    side, inner = (b_in, b_out) if transposed else (b_out, b_in)
    blocks = [v.to(compute) if transposed else v.to(compute).transpose(1, 2) for v in values]
    inputs = x.to(compute).split(inner, dim=1)
    y = torch.zeros(x.shape[0], row_lists.shape[0] * side, dtype=compute, device=x.device)
    if bias is not None:
        y += bias
    outputs = y.split(side, dim=1)
    for row, first, count, _, *entries in row_lists.tolist():
        for n, (position, column) in enumerate(_pairs(entries, count)):
            outputs[row].addmm_(inputs[column], blocks[int(n >= first)][position])
    return y.to(x.dtype)


def hidden_grad(
    grad: Tensor, down: Tensor, pre: Tensor, row_lists: Tensor, activation: str, has_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of the pre-activations, through the down projection and the activation.

    Args:
        grad: Gradient of the MLP's output `[tokens, out]`.
        down: Blocks of the down projection `[nnz, b_out, b_hidden]`.
        pre: The pre-activations that `gate_up` returned.
        row_lists: `IndexLists.hidden_grad`.
        activation: As in `gate_up`.
        has_bias: Whether the up projection has a bias.

    Returns:
        Three tensors: the gradient, with the shape of `pre`; the hidden activations `[tokens, live · b_hidden]`; the
        gradient of the bias at the live blocks, `[live · b_hidden]` or `[0]`. The last is summed before rounding, in
        float32 (float64 if `grad` is float64).
    """
    compute = compute_dtype(grad.dtype)
    live = row_lists.shape[0] * down.shape[2]
    gated = pre.shape[1] != live
    total = gather_matmul(grad.to(compute), [down.to(compute)], row_lists, None, transposed=True)
    first = pre.to(compute)[:, :live]
    value, derivative = apply_activation(first, activation), _derivative(first, activation)
    if gated:
        up = pre.to(compute)[:, live:]
        grad_pre = torch.cat([total * up * derivative, total * value], dim=1)
    else:
        grad_pre = total * derivative
    bias = grad_pre.sum(0) if has_bias else grad_pre.new_empty(0)
    return grad_pre.to(grad.dtype), hidden_activations(pre, activation, gated), bias


def sddmm(
    own: Tensor, shared: Tensor, block_groups: Tensor, shapes: list[tuple[int, int, int]], own_is_out: bool,
    dtype: torch.dtype | None = None,
) -> list[Tensor]:  # fmt: skip
    """Gradients of the live blocks: a sampled dense-dense matrix product.

    Args:
        own: Operand of which each block of a group has its own column block, `[tokens, columns · b_own]`.
        shared: Operand of which the blocks of a group share one column block, `[tokens, columns · b_shared]`.
        block_groups: `IndexLists.gate_up_groups` or `down_groups`.
        shapes: `[nnz, b_out, b_in]` of the one or two results. Slots are numbered through all of them.
        own_is_out: Whether `own` gives the rows of a block (gate and up) or its columns (down projection).
        dtype: Dtype of the gradients; that of `own` if left out.

    Returns:
        One gradient for each shape.
    """
    compute = compute_dtype(own.dtype)
    b_out, b_in = shapes[0][1:]
    b_own, b_shared = (b_out, b_in) if own_is_out else (b_in, b_out)
    owns, shareds = own.to(compute).split(b_own, dim=1), shared.to(compute).split(b_shared, dim=1)
    out = torch.zeros(sum(shape[0] for shape in shapes), b_out, b_in, dtype=compute, device=own.device)
    for column, live, *entries in block_groups.tolist():
        for own_column, slot in _pairs(entries, len(entries) // 2):
            if live and slot >= 0:
                left, right = owns[own_column], shareds[column]
                torch.mm(left.t() if own_is_out else right.t(), right if own_is_out else left, out=out[slot])
    # The results of an operator must not share memory.
    return [part.to(dtype or own.dtype, copy=True) for part in out.split([shape[0] for shape in shapes])]


def _derivative(x: Tensor, activation: str) -> Tensor:
    """Derivative of an activation."""
    if activation == "silu":
        share = torch.sigmoid(x)
        return share + x * share * (1 - share)
    if activation == "gelu_tanh":
        inner = 2 * math.sqrt(2 / math.pi)
        share = torch.sigmoid(inner * (x + 0.044715 * x**3))
        return share + x * share * (1 - share) * inner * (1 + 3 * 0.044715 * x * x)
    if activation == "gelu":
        density = torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
        return 0.5 * (1 + torch.erf(x / math.sqrt(2))) + x * density
    return torch.ones_like(x)


def _pairs(entries: list[int], count: int) -> list[tuple[int, int]]:
    return list(zip(entries[: 2 * count : 2], entries[1 : 2 * count : 2], strict=True))
