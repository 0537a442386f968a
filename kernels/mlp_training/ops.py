"""The operator of a sparse MLP in training, and the operator of its gradients.

    y, pre = torch.ops.blast.block_sparse_mlp_training(x, gate_up, down, up_bias, down_bias, lists, activation, gate)

All operands have one dtype; under autocast the caller casts. The backward pass saves `x`, the blocks and `pre`, and
recomputes the hidden activations. Gradients exist for `x`, all blocks and both biases; each is computed only if it is
needed. Equal inputs give equal gradients, bit for bit. `autograd` holds the code that the operators run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from blast_kernels.mlp_training.autograd import backward, forward, gradients, save_for_backward
from blast_kernels.mlp_training.index_lists import IndexLists
from torch import Tensor


@torch.library.custom_op("blast::block_sparse_mlp_training", mutates_args=())
def block_sparse_mlp_training(
    x: Tensor,
    gate_up: Sequence[Tensor],
    down: Tensor,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    lists: Sequence[Tensor],
    activation: str,
    gate: str,
) -> tuple[Tensor, Tensor]:
    """`down · act(up · x)`, or `down · (act(gate · x) · (up · x))`.

    Args:
        x: `[..., in]`, of any strides.
        gate_up: Blocks of the gate and of the up projection, or of the up projection alone: one or two
            `[nnz, b_hidden, b_in]`, block row by block row.
        down: Blocks of the down projection `[nnz, b_out, b_hidden]`.
        up_bias: `[hidden]` or None; None with a gate.
        down_bias: `[out]` or None.
        lists: The tensors of an `index_lists.IndexLists`.
        activation: `none`, `silu`, `gelu` or `gelu_tanh`.
        gate: One of `constants.GATES`: `none`, `untied` or `tied`.

    Returns:
        `[..., out]` in the dtype of `x`, and the pre-activations of the live hidden blocks. The latter serve the
        backward pass only and have no gradient.

    Raises:
        ValueError: if a dtype, device, shape, layout or name is wrong; one sentence with what was found.
    """
    return forward(x, gate_up, down, up_bias, down_bias, lists, activation, gate)


@block_sparse_mlp_training.register_fake
def _(x, gate_up, down, up_bias, down_bias, lists, activation, gate):
    lists = IndexLists(*lists)
    tokens = x.numel() // x.shape[-1]
    out_features = lists.down.shape[0] * down.shape[1]
    pre = x.new_empty(tokens, len(gate_up) * lists.gate_up.shape[0] * down.shape[2])
    return x.new_empty(*x.shape[:-1], out_features), pre


@torch.library.custom_op("blast::block_sparse_mlp_training_grads", mutates_args=())
def block_sparse_mlp_training_grads(
    grad: Tensor,
    x: Tensor,
    pre: Tensor,
    gate_up: Sequence[Tensor],
    down: Tensor,
    lists: Sequence[Tensor],
    activation: str,
    up_bias_size: int,
    needs_x: bool,
    needs_blocks: bool,
) -> list[Tensor]:
    """Gradients of `block_sparse_mlp_training`.

    Args:
        grad: Gradient of its result `[..., out]`.
        x: As there.
        pre: Its second result.
        gate_up: As there.
        down: As there.
        lists: As there.
        activation: As there.
        up_bias_size: Length of the up bias; 0 if there is none.
        needs_x: Whether the gradient of `x` is needed.
        needs_blocks: Whether the gradients of the blocks are needed.

    Returns:
        The gradient of the up bias (`[0]` if there is none); then, where needed, those of `x`, `gate_up` and `down`.
    """
    return gradients(grad, x, pre, gate_up, down, lists, activation, up_bias_size, needs_x, needs_blocks)


@block_sparse_mlp_training_grads.register_fake
def _(grad, x, pre, gate_up, down, lists, activation, up_bias_size, needs_x, needs_blocks):
    out = [x.new_empty(up_bias_size)]
    if needs_x:
        out.append(x.new_empty(x.shape))
    if needs_blocks:
        out += [values.new_empty(values.shape) for values in (*gate_up, down)]
    return out


def _setup_context(ctx, inputs, output) -> None:
    ctx.mark_non_differentiable(output[1])
    save_for_backward(ctx, inputs, output[1])


def _backward(ctx, grad, _):
    none = [None] * len(IndexLists._fields), None, None
    if grad is None:
        return None, [None] * ctx.gate_up_matrices, None, None, None, *none
    needs_x, needs_gate_up, needs_down = ctx.needs_input_grad[:3]
    compute = torch.ops.blast.block_sparse_mlp_training_grads
    return *backward(compute, ctx, ctx.saved_tensors, grad, needs_x, any(needs_gate_up) or needs_down), *none


block_sparse_mlp_training.register_autograd(_backward, setup_context=_setup_context)
