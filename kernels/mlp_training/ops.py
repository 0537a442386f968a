"""Custom operator of a sparse MLP in training, with its gradients.

    y, saved = torch.ops.blast.block_sparse_mlp_training(x, front, down, front_bias, down_bias, lists, activation, gate)

`front` holds the blocks of gate and up, or of the only front matrix, as the layers store them (block row by block row);
`lists` are the tensors of a `train_records.IndexLists`. `gate` is `none`, `untied` or `tied`. Saved for the backward
pass are `x`, the blocks, and the pre-activations of live hidden blocks (`saved`, which is no result to use); the hidden
activations are made again. All operands have one dtype; under autocast the caller casts. Gradients exist for `x`, both
blocks and both biases; each is computed only if it is asked for. The same inputs give the same gradients, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from blast_kernels.mlp_training.autograd import forward, gradients, gradients_of, keep
from blast_kernels.mlp_training.index_lists import IndexLists
from torch import Tensor


@torch.library.custom_op("blast::block_sparse_mlp_training", mutates_args=())
def block_sparse_mlp_training(
    x: Tensor,
    front: Sequence[Tensor],
    down: Tensor,
    front_bias: Tensor | None,
    down_bias: Tensor | None,
    lists: Sequence[Tensor],
    activation: str,
    gate: str,
) -> tuple[Tensor, Tensor]:
    """`down · act(front · x)`, or gated; arguments as listed at the top of this module.

    Args:
        x: `[..., in]`, of any strides.
        front: One or two `[nnz, b_hidden, b_in]`.
        down: `[nnz, b_out, b_hidden]`.
        front_bias: `[hidden]` or None; None with a gate.
        down_bias: `[out]` or None.
        lists: `IndexLists`.
        activation: `none`, `silu`, `gelu` or `gelu_tanh`.
        gate: `none`, `untied` or `tied`.

    Returns:
        `[..., out]` in the dtype of `x`, and what the backward pass needs.

    Raises:
        ValueError: in one sentence if a dtype, device, shape, layout or name is off.
    """
    return forward(x, front, down, front_bias, down_bias, lists, activation, gate)


@block_sparse_mlp_training.register_fake
def _(x, front, down, front_bias, down_bias, lists, activation, gate):
    tokens = x.numel() // x.shape[-1]
    out_features = lists[1].shape[0] * down.shape[1]
    saved = x.new_empty(tokens, len(front) * lists[0].shape[0] * down.shape[2])
    return x.new_empty(*x.shape[:-1], out_features), saved


@torch.library.custom_op("blast::block_sparse_mlp_training_grads", mutates_args=())
def block_sparse_mlp_training_grads(
    grad: Tensor,
    x: Tensor,
    pre: Tensor,
    front: Sequence[Tensor],
    down: Tensor,
    lists: Sequence[Tensor],
    activation: str,
    hidden_bias: int,
    wants_x: bool,
    wants_blocks: bool,
) -> list[Tensor]:
    """Gradients of `block_sparse_mlp_training`.

    Args:
        grad: Gradient of its result `[..., out]`.
        x: As there.
        pre: Its second result.
        front: As there.
        down: As there.
        lists: As there.
        activation: As there.
        hidden_bias: Length of the front's bias; 0 for none.
        wants_x: Whether the gradient of `x` is asked for.
        wants_blocks: Whether those of the blocks are.

    Returns:
        Of the front's bias, `[0]` if it has none; of `x`, and of the front's blocks and `down`, where asked for.
    """
    return gradients(grad, x, pre, front, down, lists, activation, hidden_bias, wants_x, wants_blocks)


@block_sparse_mlp_training_grads.register_fake
def _(grad, x, pre, front, down, lists, activation, hidden_bias, wants_x, wants_blocks):
    out = [x.new_empty(hidden_bias)]
    if wants_x:
        out.append(x.new_empty(x.shape))
    if wants_blocks:
        out += [values.new_empty(values.shape) for values in (*front, down)]
    return out


def _save_for_backward(ctx, inputs, output) -> None:
    ctx.mark_non_differentiable(output[1])
    keep(ctx, inputs, output[1])


def _backward(ctx, grad, _):
    none = [None] * len(IndexLists._fields), None, None
    if grad is None:
        return None, [None] * ctx.fronts, None, None, None, *none
    wants_x, wants_front, wants_down = ctx.needs_input_grad[:3]
    make = torch.ops.blast.block_sparse_mlp_training_grads
    return *gradients_of(make, ctx, ctx.saved_tensors, grad, wants_x, any(wants_front) or wants_down), *none


block_sparse_mlp_training.register_autograd(_backward, setup_context=_save_for_backward)
