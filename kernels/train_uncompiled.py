"""A sparse MLP in training outside of compiled graphs: no operator of torch, and so faster for the host to call."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from blast_kernels.train_passes import cast, forward, gradients, gradients_of, keep
from torch import Tensor


def train_uncompiled(
    tell: Callable[[Tensor, Tensor], object] | None, dtype: torch.dtype | None, *inputs: object
) -> Tensor:
    """`sparse_mlp_train` for calls from outside of compiled graphs, which the host is faster with.

    Args:
        tell: Called in the backward pass with `x`, in `dtype`, and the gradient of the result: `dense_gradients` follow
            from them. None tells nobody.
        dtype: What is multiplied and returned, as under autocast. Gradients have the dtypes of the operands; those of
            blocks and biases are never rounded to `dtype` on their way. None: that of the operands, which is one.
        inputs: Those of `sparse_mlp_train`.

    Returns:
        `[..., out]`.

    Raises:
        ValueError: as `sparse_mlp_train`.
    """
    x, front, down, front_bias, down_bias, lists, activation, gate = inputs
    return _Uncompiled.apply(tell, dtype, activation, gate, list(lists), x, front_bias, down_bias, down, *front)


class _Uncompiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tell, dtype, activation, gate, lists, x, front_bias, down_bias, down, *front):
        ctx.tell, ctx.dtype_of_blocks = tell, down.dtype
        if dtype is not None:
            x = x.to(dtype)
            front_bias, down_bias, down, *front = cast((front_bias, down_bias, down, *front), dtype)
        inputs = x, list(front), down, front_bias, down_bias, lists, activation, gate
        y, pre = forward(*inputs)
        keep(ctx, inputs, pre)
        return y

    @staticmethod
    def backward(ctx, grad):
        if grad is None:
            return (None,) * (9 + ctx.fronts)
        wants_x, wants_blocks = ctx.needs_input_grad[5], any(ctx.needs_input_grad[8:])
        make = partial(gradients, dtype=ctx.dtype_of_blocks)
        # Looked at once: a checkpoint makes them again each time.
        saved = ctx.saved_tensors
        grad_x, grad_front, grad_down, front_bias, down_bias = gradients_of(
            make, ctx, saved, grad, wants_x, wants_blocks
        )
        if ctx.tell is not None:
            ctx.tell(saved[0], grad)
        # Autograd casts the gradient of `x`.
        return None, None, None, None, None, grad_x, front_bias, down_bias, grad_down, *grad_front
