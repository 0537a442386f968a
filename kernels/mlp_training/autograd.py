"""Forward and backward pass of a sparse MLP in training; what `train_ops` and `mlp_training_eager` have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from blast_kernels.common.checks import DTYPES, check_bias
from blast_kernels.common.constants import ACTIVATIONS, GATES
from blast_kernels.mlp_training import reference
from blast_kernels.mlp_training.index_lists import IndexLists
from torch import Tensor

try:
    from blast_kernels.mlp_training import launch
except ImportError:  # Triton exists for Linux alone; the twins run everywhere.
    launch = None


def forward(x, front, down, front_bias, down_bias, lists, activation, gate) -> tuple[Tensor, Tensor]:
    """As `train_ops.block_sparse_mlp_training`."""
    lists = IndexLists(*lists)
    _check(x, front, down, front_bias, down_bias, lists, activation, gate)
    flat = _flat(x)
    module = _module(flat, [*front, down])
    pre, hidden = module.front(flat, list(front), lists.front, front_bias, activation, gate)
    y = module.gather_product(hidden, [down], lists.down, down_bias, turned=False)
    return y.view(*x.shape[:-1], y.shape[-1]), pre


def gradients(
    grad, x, pre, front, down, lists, activation, hidden_bias, wants_x, wants_blocks, dtype=None
) -> list[Tensor]:
    """As `train_ops.block_sparse_mlp_training_grads`; those of bias and blocks in `dtype`, by default that of `x`."""
    dtype = dtype or x.dtype
    lists = IndexLists(*lists)
    flat_grad, flat = _flat(grad), _flat(x)
    module = _module(flat, [*front, down])
    grad_pre, hidden, live_bias = module.hidden_grad(flat_grad, down, pre, lists.hidden, activation, hidden_bias > 0)
    bias = live_bias.to(dtype)
    if bias.numel() < hidden_bias:
        # A dead hidden block is read by nobody: its bias has no gradient.
        blocks = bias.view(-1, down.shape[2])
        bias = blocks.new_zeros(hidden_bias // blocks.shape[1], blocks.shape[1])
        bias = bias.index_copy_(0, lists.live.long(), blocks).view(-1)
    out = [bias]
    if wants_x:
        grad_x = module.gather_product(grad_pre, list(front), lists.inputs, None, turned=True)
        out.append(grad_x.view(x.shape))
    if wants_blocks:
        shapes = [tuple(values.shape) for values in front]
        out += module.sample(grad_pre, flat, lists.front_groups, shapes, own_is_out=True, dtype=dtype)
        out += module.sample(hidden, flat_grad, lists.down_groups, [tuple(down.shape)], own_is_out=False, dtype=dtype)
    return out


@torch.no_grad()
def dense_gradients(
    grad: Tensor,
    x: Tensor,
    front: Sequence[Tensor],
    down: Tensor,
    front_bias: Tensor | None,
    whole: Sequence[Tensor],
    activation: str,
    gate: str,
) -> list[Tensor]:
    """Gradients of the matrices of an MLP with all their blocks, live or not.

    Other arguments as `block_sparse_mlp_training`.

    The hidden activations are made again, those of dead hidden blocks too, which no step computes.

    Args:
        grad: Gradient of its result `[..., out]`.
        x: Its input `[..., in]`.
        whole: `train_records.complete_arrays`, on the device of `x`.

    Returns:
        Of the front's matrices `[hidden, in]` and of the down projection `[out, hidden]`, in the dtype of `x`.
    """
    flat_grad, flat = _flat(grad), _flat(x)
    front_bias, down, *front = cast((front_bias, down, *front), x.dtype)
    module = _module(flat, [*front, down])
    pre, _ = module.front(flat, front, whole[0], front_bias, activation, gate)
    grad_pre, hidden, _ = module.hidden_grad(flat_grad, down, pre, whole[1], activation, has_bias=False)
    return [*(part.t() @ flat for part in grad_pre.chunk(len(front), dim=1)), flat_grad.t() @ hidden]


def cast(tensors: Sequence[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    """Tensors (None stays None) in a dtype, without gradients; those of another one are copied in one launch."""
    others = [tensor for tensor in tensors if tensor is not None and tensor.dtype != dtype]
    made = [torch.empty_like(tensor, dtype=dtype, requires_grad=False) for tensor in others]
    if others:
        torch._foreach_copy_(made, [tensor.detach() for tensor in others])
    copies = iter(made)
    return [tensor if tensor is None or tensor.dtype == dtype else next(copies) for tensor in tensors]


def keep(ctx, inputs, pre) -> None:
    """Saves for the backward pass what it needs."""
    x, front, down, front_bias, down_bias, lists, activation, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, pre, down, *front, *lists)
    ctx.fronts, ctx.activation = len(front), activation
    ctx.hidden_bias = 0 if front_bias is None else front_bias.numel()
    ctx.has_down_bias = down_bias is not None


def gradients_of(make: Callable, ctx, saved, grad: Tensor, wants_x: bool, wants_blocks: bool) -> list:
    """Gradients of `x`, the list of the front's, of `down` and of both biases, made by `make` of what was kept."""
    x, pre, down, *rest = saved
    front, lists = rest[: ctx.fronts], rest[ctx.fronts :]
    front_bias, *grads = make(grad, x, pre, front, down, lists, ctx.activation, ctx.hidden_bias, wants_x, wants_blocks)
    grad_x = grads.pop(0) if wants_x else None
    *grad_front, grad_down = grads or [None] * (ctx.fronts + 1)
    down_bias = grad.reshape(-1, grad.shape[-1]).sum(0, dtype=front_bias.dtype) if ctx.has_down_bias else None
    return [grad_x, grad_front, grad_down, front_bias if ctx.hidden_bias else None, down_bias]


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1]).contiguous()


def _module(x: Tensor, blocks: list[Tensor]):
    on_triton = x.is_cuda and launch is not None and launch.supports(x, blocks)
    return launch if on_triton else reference


def _check(x, front, down, front_bias, down_bias, lists, activation, gate) -> None:
    if gate not in GATES:
        raise ValueError(f"gate {gate!r} is unknown; use one of {', '.join(GATES)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r} is unknown; use one of {', '.join(ACTIVATIONS)}")
    if len(front) != (1 if gate == "none" else 2):
        raise ValueError(f"gate {gate!r} wants {1 if gate == 'none' else 2} front matrices, not {len(front)}")
    if gate != "none" and front_bias is not None:
        raise ValueError("a gated front takes no bias; pass None")
    for values in (*front, down):
        if values.dim() != 3 or not values.is_contiguous():
            raise ValueError(f"blocks must be contiguous [nnz, b_out, b_in], not {list(values.shape)}")
        if values.dtype not in DTYPES or values.dtype != x.dtype or values.device != x.device:
            raise ValueError(
                f"x is {x.dtype} on {x.device} and blocks are {values.dtype} on {values.device}; "
                "convert or move one of them"
            )
    if any(values.shape[1:] != front[0].shape[1:] for values in front) or front[0].shape[1] != down.shape[2]:
        shapes = " and ".join(str(list(values.shape[1:])) for values in (*front, down))
        raise ValueError(f"blocks of {shapes} have no hidden blocks in common; train such an MLP layer by layer")
    for records in lists:
        if records.dtype != torch.int32 or records.device != x.device:
            raise ValueError(f"the lists must be int32 on {x.device}, not {records.dtype} on {records.device}")
    in_features = lists.inputs.shape[0] * front[0].shape[2]
    if x.dim() == 0 or x.shape[-1] != in_features:
        raise ValueError(f"x is {list(x.shape)}, but its last dimension must be {in_features}")
    if front_bias is not None:
        check_bias(front_bias, front_bias.numel(), x)
    check_bias(down_bias, lists.down.shape[0] * down.shape[1], x)


def mlp_training_eager(
    tell: Callable[[Tensor, Tensor], object] | None, dtype: torch.dtype | None, *inputs: object
) -> Tensor:
    """`block_sparse_mlp_training` for calls from outside of compiled graphs, which the host is faster with.

    Args:
        tell: Called in the backward pass with `x`, in `dtype`, and the gradient of the result: `dense_gradients` follow
            from them. None tells nobody.
        dtype: What is multiplied and returned, as under autocast. Gradients have the dtypes of the operands; those of
            blocks and biases are never rounded to `dtype` on their way. None: that of the operands, which is one.
        inputs: Those of `block_sparse_mlp_training`.

    Returns:
        `[..., out]`.

    Raises:
        ValueError: as `block_sparse_mlp_training`.
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
