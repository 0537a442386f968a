"""What the training kernels compute, in plain PyTorch: what they are compared with, and the CPU implementation.

Lists are those of `train_records`. Half-precision operands are multiplied and summed in float32 and rounded once.
"""

from __future__ import annotations

import math

import torch
from blast_kernels.common.dense import apply_activation
from torch import Tensor


def front(
    x: Tensor, values: list[Tensor], records: Tensor, bias: Tensor | None, activation: str, gate: str
) -> tuple[Tensor, Tensor]:
    """Pre-activations and hidden activations of the live hidden blocks.

    Args:
        x: `[tokens, in]`.
        values: Blocks `[nnz, b_hidden, b_in]` of gate and up, or of the only front matrix.
        records: `IndexLists.front`.
        bias: `[hidden]` (dead blocks included) or None; None with a gate.
        activation: `none`, `silu`, `gelu` or `gelu_tanh`.
        gate: `none`, `untied` or `tied`.

    Returns:
        `pre [tokens, live · b_hidden]`, gated `[tokens, 2 · live · b_hidden]` (gate, then up), and
        `hidden [tokens, live · b_hidden]`; both in the dtype of `x`.
    """
    compute = compute_dtype(x.dtype)
    b_hidden, b_in = values[0].shape[1:]
    live = records.shape[0]
    inputs = x.to(compute).split(b_in, dim=1)
    blocks = [v.to(compute).transpose(1, 2) for v in values]
    pre = torch.zeros(x.shape[0], len(values) * live * b_hidden, dtype=compute, device=x.device)
    outputs = pre.split(b_hidden, dim=1)
    biases = None if bias is None else bias.to(compute).split(b_hidden)
    for row, first, count, label, *entries in records.tolist():
        if biases is not None:
            outputs[row].add_(biases[label])
        for n, (position, column) in enumerate(_pairs(entries, count)):
            if gate == "tied":
                outputs[row].addmm_(inputs[column], blocks[0][position])
                outputs[live + row].addmm_(inputs[column], blocks[1][position])
            else:
                outputs[row if n < first else live + row].addmm_(inputs[column], blocks[int(n >= first)][position])
    pre = pre.to(x.dtype)
    return pre, hidden_of(pre, activation, len(values) == 2)


def hidden_of(pre: Tensor, activation: str, gated: bool) -> Tensor:
    """Hidden activations of rounded pre-activations."""
    wide = pre.to(compute_dtype(pre.dtype))
    if not gated:
        return apply_activation(wide, activation).to(pre.dtype)
    gate, up = wide.chunk(2, dim=1)
    return (apply_activation(gate, activation) * up).to(pre.dtype)


def gather_product(x: Tensor, values: list[Tensor], records: Tensor, bias: Tensor | None, turned: bool) -> Tensor:
    """`Σ x[column] · block[position]` over the list of each output block, plus a bias.

    Args:
        x: `[tokens, columns · side]`.
        values: Blocks `[nnz, b_out, b_in]` of one or two matrices; `first` entries of a list are of the first.
        records: `IndexLists.down` or, turned, `IndexLists.inputs`; every output block has a record.
        bias: `[outputs]` or None.
        turned: Whether the blocks are those of the transposed product.

    Returns:
        `[tokens, records · b_out]`, turned `[tokens, records · b_in]`, in the dtype of `x`.
    """
    compute = compute_dtype(x.dtype)
    b_out, b_in = values[0].shape[1:]
    side, inner = (b_in, b_out) if turned else (b_out, b_in)
    blocks = [v.to(compute) if turned else v.to(compute).transpose(1, 2) for v in values]
    inputs = x.to(compute).split(inner, dim=1)
    y = torch.zeros(x.shape[0], records.shape[0] * side, dtype=compute, device=x.device)
    if bias is not None:
        y += bias
    outputs = y.split(side, dim=1)
    for row, first, count, _, *entries in records.tolist():
        for n, (position, column) in enumerate(_pairs(entries, count)):
            outputs[row].addmm_(inputs[column], blocks[int(n >= first)][position])
    return y.to(x.dtype)


def hidden_grad(
    grad: Tensor, down: Tensor, pre: Tensor, records: Tensor, activation: str, has_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of the pre-activations.

    Args:
        grad: Gradient of the MLP's output `[tokens, out]`.
        down: Blocks of the down projection `[nnz, b_out, b_hidden]`.
        pre: What `front` saved.
        records: `IndexLists.hidden`.
        activation: As in `front`.
        has_bias: Whether the front has a bias.

    Returns:
        The gradient `[tokens, as pre]`; the hidden activations `[tokens, live · b_hidden]`; the gradient of the bias
        at the live blocks, summed before rounding, float32 (float64 of float64): `[live · b_hidden]`, or `[0]`.
    """
    compute = compute_dtype(grad.dtype)
    live = records.shape[0] * down.shape[2]
    gated = pre.shape[1] != live
    total = gather_product(grad.to(compute), [down.to(compute)], records, None, turned=True)
    first = pre.to(compute)[:, :live]
    value, slope = apply_activation(first, activation), _slope(first, activation)
    if gated:
        up = pre.to(compute)[:, live:]
        grad_pre = torch.cat([total * up * slope, total * value], dim=1)
    else:
        grad_pre = total * slope
    bias = grad_pre.sum(0) if has_bias else grad_pre.new_empty(0)
    return grad_pre.to(grad.dtype), hidden_of(pre, activation, gated), bias


def sample(
    own: Tensor, shared: Tensor, records: Tensor, shapes: list[tuple[int, int, int]], own_is_out: bool,
    dtype: torch.dtype | None = None,
) -> list[Tensor]:  # fmt: skip
    """Gradients of the live blocks.

    Args:
        own: Operand that each block of a group has for itself, `[tokens, columns · b_own]`.
        shared: Operand that the blocks of a group share, `[tokens, columns · b_shared]`.
        records: `IndexLists.front_groups` or `.down_groups`.
        shapes: `[nnz, b_out, b_in]` of the one or two results; slots count through them.
        own_is_out: Whether `own` gives the rows of a block (gradient of the front) or its columns (down projection).
        dtype: Of the gradients; that of `own` if left out.

    Returns:
        One gradient a shape.
    """
    compute = compute_dtype(own.dtype)
    b_out, b_in = shapes[0][1:]
    b_own, b_shared = (b_out, b_in) if own_is_out else (b_in, b_out)
    owns, shareds = own.to(compute).split(b_own, dim=1), shared.to(compute).split(b_shared, dim=1)
    out = torch.zeros(sum(shape[0] for shape in shapes), b_out, b_in, dtype=compute, device=own.device)
    for column, live, *entries in records.tolist():
        for own_column, slot in _pairs(entries, len(entries) // 2):
            if live and slot >= 0:
                left, right = owns[own_column], shareds[column]
                torch.mm(left.t() if own_is_out else right.t(), right if own_is_out else left, out=out[slot])
    # An operator's results may not share memory.
    return [part.to(dtype or own.dtype, copy=True) for part in out.split([shape[0] for shape in shapes])]


def _slope(x: Tensor, activation: str) -> Tensor:
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


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
