"""Forward and backward pass of a sparse MLP in training, from `launch` (Triton) or `reference` (plain PyTorch).

Compiled graphs use the operators of `ops`. Eager code calls `mlp_training_eager`, which costs the CPU less. Both run
`forward` and `gradients`. `dense_gradients` gives the gradients of dead blocks too, which mask updates need.

`gate_up` is a list everywhere in this folder: the blocks of the gate and of the up projection, or of the up projection
alone if there is no gate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from blast_kernels.common.checks import DTYPES, check_bias
from blast_kernels.common.constants import ACTIVATIONS, GATES
from blast_kernels.common.output import unflatten
from blast_kernels.mlp_training import reference
from blast_kernels.mlp_training.index_lists import IndexLists
from torch import Tensor

try:
    from blast_kernels.mlp_training import launch
except ImportError:  # Triton exists for Linux only; the reference runs everywhere.
    launch = None


def forward(x, gate_up, down, up_bias, down_bias, lists, activation, gate) -> tuple[Tensor, Tensor]:
    """`[..., out]` and the pre-activations; arguments as `ops.block_sparse_mlp_training`."""
    lists = IndexLists(*lists)
    _check(x, gate_up, down, up_bias, down_bias, lists, activation, gate)
    flat = _flat(x)
    kernels = _kernels_for(flat, [*gate_up, down])
    pre, hidden = kernels.gate_up(flat, list(gate_up), lists.gate_up, up_bias, activation, gate)
    y = kernels.gather_matmul(hidden, [down], lists.down, down_bias, transposed=False)
    return unflatten(y, x), pre


def gradients(
    grad, x, pre, gate_up, down, lists, activation, up_bias_size, needs_x, needs_blocks, dtype=None
) -> list[Tensor]:
    """Gradients of the bias, of `x` and of the blocks; arguments as `ops.block_sparse_mlp_training_grads`.

    Those of the bias and of the blocks are in `dtype`, by default in the dtype of `x`.
    """
    dtype = dtype or x.dtype
    lists = IndexLists(*lists)
    flat_grad, flat = _flat(grad), _flat(x)
    kernels = _kernels_for(flat, [*gate_up, down])
    grad_pre, hidden, live_bias = kernels.hidden_grad(
        flat_grad, down, pre, lists.hidden_grad, activation, up_bias_size > 0
    )
    bias = live_bias.to(dtype)
    if bias.numel() < up_bias_size:
        # The bias of a dead hidden block has no effect on the result, so its gradient is zero.
        blocks = bias.view(-1, down.shape[2])
        bias = blocks.new_zeros(up_bias_size // blocks.shape[1], blocks.shape[1])
        bias = bias.index_copy_(0, lists.live.long(), blocks).view(-1)
    out = [bias]
    if needs_x:
        grad_x = kernels.gather_matmul(grad_pre, list(gate_up), lists.input_grad, None, transposed=True)
        out.append(unflatten(grad_x, x))
    if needs_blocks:
        shapes = [tuple(values.shape) for values in gate_up]
        out += kernels.sddmm(grad_pre, flat, lists.gate_up_groups, shapes, own_is_out=True, dtype=dtype)
        out += kernels.sddmm(hidden, flat_grad, lists.down_groups, [tuple(down.shape)], own_is_out=False, dtype=dtype)
    return out


@torch.no_grad()
def dense_gradients(
    grad: Tensor,
    x: Tensor,
    gate_up: Sequence[Tensor],
    down: Tensor,
    up_bias: Tensor | None,
    complete_lists: Sequence[Tensor],
    activation: str,
    gate: str,
) -> list[Tensor]:
    """Gradients of the matrices of an MLP with all their blocks, live or dead.

    This recomputes the hidden activations, also those of dead hidden blocks, which a training step leaves out.

    Args:
        grad: Gradient of the result `[..., out]`.
        x: Input of the MLP `[..., in]`.
        gate_up: As in `ops.block_sparse_mlp_training`.
        down: As there.
        up_bias: As there.
        complete_lists: `index_lists.complete_arrays`, on the device of `x`.
        activation: As there.
        gate: As there.

    Returns:
        For each matrix of `gate_up` `[hidden, in]`, and for `down` `[out, hidden]`, in the dtype of `x`.
    """
    flat_grad, flat = _flat(grad), _flat(x)
    up_bias, down, *gate_up = cast((up_bias, down, *gate_up), x.dtype)
    kernels = _kernels_for(flat, [*gate_up, down])
    pre, _ = kernels.gate_up(flat, gate_up, complete_lists[0], up_bias, activation, gate)
    grad_pre, hidden, _ = kernels.hidden_grad(flat_grad, down, pre, complete_lists[1], activation, has_bias=False)
    return [*(part.t() @ flat for part in grad_pre.chunk(len(gate_up), dim=1)), flat_grad.t() @ hidden]


def mlp_training_eager(
    on_backward: Callable[[Tensor, Tensor], object] | None, dtype: torch.dtype | None, *inputs: object
) -> Tensor:
    """`ops.block_sparse_mlp_training` for eager code: not for compiled graphs, but with less work for the CPU.

    Args:
        on_backward: Called in the backward pass with the activations that `dense_gradients` needs: `x`, in `dtype`, and
            the gradient of the result. None: not called.
        dtype: Dtype of the products and of the result, as under autocast. Gradients have the dtypes of the operands;
            those of blocks and biases are not rounded to `dtype` first. None: the dtype of the operands, which must
            then be the same for all.
        inputs: The arguments of `block_sparse_mlp_training`.

    Returns:
        `[..., out]`.

    Raises:
        ValueError: as `block_sparse_mlp_training`.
    """
    x, gate_up, down, up_bias, down_bias, lists, activation, gate = inputs
    return _EagerMlp.apply(on_backward, dtype, activation, gate, list(lists), x, up_bias, down_bias, down, *gate_up)


class _EagerMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, on_backward, dtype, activation, gate, lists, x, up_bias, down_bias, down, *gate_up):
        ctx.on_backward, ctx.dtype_of_blocks = on_backward, down.dtype
        if dtype is not None:
            x = x.to(dtype)
            up_bias, down_bias, down, *gate_up = cast((up_bias, down_bias, down, *gate_up), dtype)
        inputs = x, list(gate_up), down, up_bias, down_bias, lists, activation, gate
        y, pre = forward(*inputs)
        save_for_backward(ctx, inputs, pre)
        return y

    @staticmethod
    def backward(ctx, grad):
        if grad is None:
            return (None,) * (9 + ctx.gate_up_matrices)
        needs_x, needs_blocks = ctx.needs_input_grad[5], any(ctx.needs_input_grad[8:])
        # Read once: with activation checkpointing, each read recomputes them.
        saved = ctx.saved_tensors
        grad_x, grad_gate_up, grad_down, grad_up_bias, grad_down_bias = backward(
            partial(gradients, dtype=ctx.dtype_of_blocks), ctx, saved, grad, needs_x, needs_blocks
        )
        if ctx.on_backward is not None:
            ctx.on_backward(saved[0], grad)
        # Autograd casts the gradient of `x`.
        return None, None, None, None, None, grad_x, grad_up_bias, grad_down_bias, grad_down, *grad_gate_up


def save_for_backward(ctx, inputs, pre) -> None:
    """Saves the tensors and settings that `backward` needs."""
    x, gate_up, down, up_bias, down_bias, lists, activation, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, pre, down, *gate_up, *lists)
    ctx.gate_up_matrices, ctx.activation = len(gate_up), activation
    ctx.up_bias_size = 0 if up_bias is None else up_bias.numel()
    ctx.has_down_bias = down_bias is not None


def backward(compute: Callable, ctx, saved, grad: Tensor, needs_x: bool, needs_blocks: bool) -> list:
    """Gradients of all inputs from the saved tensors; None where one is not needed.

    Args:
        compute: `gradients`, or the operator that runs it.
        ctx: As `save_for_backward` left it.
        saved: Its saved tensors.
        grad: Gradient of the result `[..., out]`.
        needs_x: Whether the gradient of `x` is needed.
        needs_blocks: Whether those of the blocks are needed.

    Returns:
        Gradients of `x`, the list of `gate_up`, `down`, the up bias and the down bias.
    """
    x, pre, down, *rest = saved
    gate_up, lists = rest[: ctx.gate_up_matrices], rest[ctx.gate_up_matrices :]
    up_bias, *grads = compute(
        grad, x, pre, gate_up, down, lists, ctx.activation, ctx.up_bias_size, needs_x, needs_blocks
    )
    grad_x = grads.pop(0) if needs_x else None
    *grad_gate_up, grad_down = grads or [None] * (ctx.gate_up_matrices + 1)
    down_bias = grad.reshape(-1, grad.shape[-1]).sum(0, dtype=up_bias.dtype) if ctx.has_down_bias else None
    return [grad_x, grad_gate_up, grad_down, up_bias if ctx.up_bias_size else None, down_bias]


def cast(tensors: Sequence[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    """The tensors in a dtype, without gradients. Those of another dtype are copied in one launch; None stays None."""
    others = [tensor for tensor in tensors if tensor is not None and tensor.dtype != dtype]
    made = [torch.empty_like(tensor, dtype=dtype, requires_grad=False) for tensor in others]
    if others:
        torch._foreach_copy_(made, [tensor.detach() for tensor in others])
    copies = iter(made)
    return [tensor if tensor is None or tensor.dtype == dtype else next(copies) for tensor in tensors]


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1]).contiguous()


def _kernels_for(x: Tensor, blocks: list[Tensor]):
    """The module whose functions compute with these operands: `launch` or `reference`."""
    on_triton = x.is_cuda and launch is not None and launch.supports(x, blocks)
    return launch if on_triton else reference


def _check(x, gate_up, down, up_bias, down_bias, lists, activation, gate) -> None:
    if gate not in GATES:
        raise ValueError(f"gate {gate!r} is unknown; use one of {', '.join(GATES)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r} is unknown; use one of {', '.join(ACTIVATIONS)}")
    matrices = 1 if gate == "none" else 2
    if len(gate_up) != matrices:
        raise ValueError(f"gate {gate!r} needs {matrices} tensors in gate_up, not {len(gate_up)}")
    if gate != "none" and up_bias is not None:
        raise ValueError("an MLP with a gate takes no up_bias; pass None")
    for values in (*gate_up, down):
        if values.dim() != 3 or not values.is_contiguous():
            raise ValueError(f"blocks must be contiguous [nnz, b_out, b_in], not {list(values.shape)}")
        if values.dtype not in DTYPES or values.dtype != x.dtype or values.device != x.device:
            raise ValueError(
                f"x is {x.dtype} on {x.device} and blocks are {values.dtype} on {values.device}; "
                "convert or move one of them"
            )
    if any(values.shape[1:] != gate_up[0].shape[1:] for values in gate_up) or gate_up[0].shape[1] != down.shape[2]:
        shapes = " and ".join(str(list(values.shape[1:])) for values in (*gate_up, down))
        raise ValueError(f"blocks of {shapes} have no hidden blocks in common; train such an MLP layer by layer")
    for index in lists:
        if index.dtype != torch.int32 or index.device != x.device:
            raise ValueError(f"the lists must be int32 on {x.device}, not {index.dtype} on {index.device}")
    in_features = lists.input_grad.shape[0] * gate_up[0].shape[2]
    if x.dim() == 0 or x.shape[-1] != in_features:
        raise ValueError(f"x is {list(x.shape)}, but its last dimension must be {in_features}")
    if up_bias is not None:
        check_bias(up_bias, up_bias.numel(), x)
    check_bias(down_bias, lists.down.shape[0] * down.shape[1], x)
