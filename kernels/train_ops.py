"""Custom operator of a sparse MLP in training, with its gradients.

    y, saved = torch.ops.blast.sparse_mlp_train(x, front, down, front_bias, down_bias, lists, activation, gate)

`front` holds the blocks of gate and up, or of the only front matrix, as the layers store them (block row by block row);
`lists` are the tensors of a `train_records.TrainLists`. `gate` is `none`, `untied` or `tied`. Saved for the backward
pass are `x`, the blocks, and the pre-activations of live hidden blocks (`saved`, which is no result to use); the hidden
activations are made again. All operands have one dtype; under autocast the caller casts. Gradients exist for `x`, both
blocks and both biases; each is computed only if it is asked for. The same inputs give the same gradients, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from blast_kernels import train_reference
from blast_kernels.checks import DTYPES, check_bias
from blast_kernels.plan import ACTIVATIONS, GATES
from blast_kernels.train_records import TrainLists
from torch import Tensor

try:
    from blast_kernels import train_launch
except ImportError:  # Triton exists for Linux alone; the twins run everywhere.
    train_launch = None


@torch.library.custom_op("blast::sparse_mlp_train", mutates_args=())
def sparse_mlp_train(
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
        lists: `TrainLists`.
        activation: `none`, `silu`, `gelu` or `gelu_tanh`.
        gate: `none`, `untied` or `tied`.

    Returns:
        `[..., out]` in the dtype of `x`, and what the backward pass needs.

    Raises:
        ValueError: in one sentence if a dtype, device, shape, layout or name is off.
    """
    lists = TrainLists(*lists)
    _check(x, front, down, front_bias, down_bias, lists, activation, gate)
    flat = _flat(x)
    module = _module(flat, [*front, down])
    pre, hidden = module.front(flat, list(front), lists.front, front_bias, activation, gate)
    y = module.gather_product(hidden, [down], lists.down, down_bias, turned=False)
    return y.view(*x.shape[:-1], y.shape[-1]), pre


@sparse_mlp_train.register_fake
def _(x, front, down, front_bias, down_bias, lists, activation, gate):
    tokens = x.numel() // x.shape[-1]
    out_features = lists[1].shape[0] * down.shape[1]
    saved = x.new_empty(tokens, len(front) * lists[0].shape[0] * down.shape[2])
    return x.new_empty(*x.shape[:-1], out_features), saved


@torch.library.custom_op("blast::sparse_mlp_train_grads", mutates_args=())
def sparse_mlp_train_grads(
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
    dense: bool = False,
) -> list[Tensor]:
    """Gradients of `sparse_mlp_train`.

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
        dense: Whether those of the matrices with all their blocks are; the lists have to be those of all hidden blocks.

    Returns:
        Of the front's bias, `[0]` if it has none; of `x`, of the front's blocks and `down`, and of the front's matrices
        `[hidden, in]` and that of the down projection `[out, hidden]`, where asked for.
    """
    lists = TrainLists(*lists)
    flat_grad, flat = _flat(grad), _flat(x)
    module = _module(flat, [*front, down])
    grad_pre, hidden, live_bias = module.hidden_grad(flat_grad, down, pre, lists.hidden, activation, hidden_bias > 0)
    bias = x.new_zeros(hidden_bias)
    if hidden_bias:
        # A dead hidden block is read by nobody: its bias has no gradient.
        bias.view(-1, down.shape[2])[lists.live.long()] = live_bias.view(-1, down.shape[2]).to(x.dtype)
    out = [bias]
    if wants_x:
        grad_x = module.gather_product(grad_pre, list(front), lists.inputs, None, turned=True)
        out.append(grad_x.view(x.shape))
    if wants_blocks:
        shapes = [tuple(values.shape) for values in front]
        out += module.sample(grad_pre, flat, lists.front_groups, shapes, own_is_out=True)
        out += module.sample(hidden, flat_grad, lists.down_groups, [tuple(down.shape)], own_is_out=False)
    if dense:
        out += [part.t() @ flat for part in grad_pre.chunk(len(front), dim=1)]
        out.append(flat_grad.t() @ hidden)
    return out


@sparse_mlp_train_grads.register_fake
def _(grad, x, pre, front, down, lists, activation, hidden_bias, wants_x, wants_blocks, dense=False):
    out = [x.new_empty(hidden_bias)]
    if wants_x:
        out.append(x.new_empty(x.shape))
    if wants_blocks:
        out += [values.new_empty(values.shape) for values in (*front, down)]
    if dense:
        hidden = lists[0].shape[0] * down.shape[2]
        out += [x.new_empty(hidden, x.shape[-1]) for _ in front]
        out.append(x.new_empty(grad.shape[-1], hidden))
    return out


def _save_for_backward(ctx, inputs, output) -> None:
    ctx.mark_non_differentiable(output[1])
    _keep(ctx, inputs, output[1])


def _keep(ctx, inputs, pre) -> None:
    x, front, down, front_bias, down_bias, lists, activation, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, pre, down, *front, *lists)
    ctx.fronts, ctx.activation = len(front), activation
    ctx.hidden_bias = 0 if front_bias is None else front_bias.numel()
    ctx.has_down_bias = down_bias is not None


def _gradients(ctx, grad: Tensor, wants_x: bool, wants_blocks: bool, dense: bool = False) -> tuple[list, list[Tensor]]:
    """Gradients of `x`, the list of the front's, of `down` and of both biases; then the dense ones."""
    x, pre, down, *rest = ctx.saved_tensors
    front, lists = rest[: ctx.fronts], rest[ctx.fronts :]
    front_bias, *grads = torch.ops.blast.sparse_mlp_train_grads(
        grad, x, pre, front, down, lists, ctx.activation, ctx.hidden_bias, wants_x, wants_blocks, dense
    )
    grad_x = grads.pop(0) if wants_x else None
    blocks = ctx.fronts + 1 if wants_blocks else 0
    *grad_front, grad_down = grads[:blocks] or [None] * (ctx.fronts + 1)
    down_bias = grad.reshape(-1, grad.shape[-1]).sum(0) if ctx.has_down_bias else None
    return [grad_x, grad_front, grad_down, front_bias if ctx.hidden_bias else None, down_bias], grads[blocks:]


def _backward(ctx, grad, _):
    none = [None] * len(TrainLists._fields), None, None
    if grad is None:
        return None, [None] * ctx.fronts, None, None, None, *none
    wants_x, wants_front, wants_down = ctx.needs_input_grad[:3]
    grads, _ = _gradients(ctx, grad, wants_x, any(wants_front) or wants_down)
    return *grads, *none


sparse_mlp_train.register_autograd(_backward, setup_context=_save_for_backward)


def train_and_watch(take: Callable[[list[Tensor]], object], *inputs: object) -> Tensor:
    """`sparse_mlp_train` that makes the dense gradients of its matrices too, for a mask update.

    Args:
        take: Called in the backward pass with the gradients of the front's matrices `[hidden, in]` and of the down
            projection `[out, hidden]`, in the dtype of `x`.
        inputs: Those of `sparse_mlp_train`, with the lists of all hidden blocks (`whole`).

    Returns:
        `[..., out]`; the gradients that autograd gets are those of the operator.
    """
    x, front, down, front_bias, down_bias, lists, activation, gate = inputs
    return _Watched.apply(take, activation, gate, list(lists), x, front_bias, down_bias, down, *front)


class _Watched(torch.autograd.Function):
    @staticmethod
    def forward(ctx, take, activation, gate, lists, x, front_bias, down_bias, down, *front):
        inputs = x, list(front), down, front_bias, down_bias, lists, activation, gate
        y, pre = torch.ops.blast.sparse_mlp_train(*inputs)
        _keep(ctx, inputs, pre)
        ctx.take = take
        return y

    @staticmethod
    def backward(ctx, grad):
        if grad is None:
            return (None,) * (8 + ctx.fronts)
        (grad_x, grad_front, grad_down, front_bias, down_bias), dense = _gradients(ctx, grad, True, True, dense=True)
        ctx.take(dense)
        return None, None, None, None, grad_x, front_bias, down_bias, grad_down, *grad_front


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1]).contiguous()


def _module(x: Tensor, blocks: list[Tensor]):
    on_triton = x.is_cuda and train_launch is not None and train_launch.supports(x, blocks)
    return train_launch if on_triton else train_reference


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
