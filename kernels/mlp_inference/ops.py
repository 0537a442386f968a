"""Custom operators of the fast inference kernels: one product with its epilogue, and a whole MLP.

    h = torch.ops.blast.block_sparse_product(x, values, row_list, bias, out_features, activation, gate, scales,
                                             up, up_scales, blocks)
    y = torch.ops.blast.block_sparse_mlp(x, gate_up, up, gate_up_row_list, gate_up_bias, down, down_row_list, down_bias,
                                         hidden_features, out_features, activation, gate, gate_up_scales, up_scales,
                                         down_scales, down_blocks)

`row_list` comes from `blast_kernels.mlp_inference.row_lists`, built once with the matrix. `gate` is `none` (GPT-2,
ViT: the gate-up product is `act(x · Wᵀ + bias)`), `untied` (`act(x · Gᵀ) · (x · Uᵀ)`) or `tied` (the same, and gate and
up share a mask). The blocks are those of the layers, in the order of their block-CSR matrices, so no copy of them is
needed. Values are of the dtype of `x`, or fp8 with the scales that `quantize.quantize_blocks` gave for them (`x` in
float16 or bfloat16). For inference: no gradients; train through `torch.ops.blast.block_sparse_linear`.
"""

from __future__ import annotations

from typing import Any

import torch
from blast_kernels.common.checks import check_bias, check_row_lists
from blast_kernels.common.constants import ACTIVATIONS, GATES
from blast_kernels.common.quantize import dequantize
from blast_kernels.cpu import batched
from blast_kernels.cpu import launch as cpu
from blast_kernels.mlp_inference import reference
from torch import Tensor

try:
    from blast_kernels.mlp_inference import launch as triton_product
    from blast_kernels.mlp_inference.mlp import launch_mlp
except ImportError:  # Triton exists for Linux alone; the references run everywhere.
    triton_product = None


@torch.library.custom_op("blast::block_sparse_product", mutates_args=())
def block_sparse_product(
    x: Tensor,
    values: Tensor,
    row_list: Tensor,
    bias: Tensor | None,
    out_features: int,
    activation: str,
    gate: str,
    scales: Tensor | None = None,
    up: Tensor | None = None,
    up_scales: Tensor | None = None,
    blocks: int | None = None,
) -> Tensor:
    """`act(x · Wᵀ + bias)` or a gated product; arguments as `reference.product`, `x [..., in]`.

    Raises:
        ValueError: in one sentence if a dtype, device, shape, layout or name is off.
    """
    _check(x, values, up, row_list, bias, out_features, activation, gate, scales, up_scales)
    flat = x.reshape(-1, x.shape[-1]).contiguous()
    up, up_scales = _readable(flat, up, scales if gate == "tied" else up_scales)
    values, scales = _readable(flat, values, scales)
    more = {"scales": scales, "up": up, "up_scales": up_scales, "blocks": blocks}
    if _runs_on_triton(flat, values):
        # Block rows without an entry are zero; with an entry for each, nothing is written twice.
        complete = row_list.shape[0] * values.shape[1] == out_features
        make = torch.empty if complete else torch.zeros
        out = make(flat.shape[0], out_features, dtype=x.dtype, device=x.device)
        triton_product.product(flat, values, row_list, bias, out, activation, gate, **more)
    elif cpu.supports(flat, values):
        out = cpu.products(flat, cpu.Operands(values, up, row_list, bias, out_features, activation, gate, blocks))
    else:
        out = _plain_product(flat, values, row_list, bias, out_features, activation, gate, **more)
    return out.view(*x.shape[:-1], out_features)


@block_sparse_product.register_fake
def _(
    x, values, row_list, bias, out_features, activation, gate, scales=None, up=None, up_scales=None, blocks=None
):  # fmt: skip
    return x.new_empty(*x.shape[:-1], out_features)


@torch.library.custom_op("blast::block_sparse_mlp", mutates_args=())
def block_sparse_mlp(
    x: Tensor,
    gate_up: Tensor,
    up: Tensor | None,
    gate_up_row_list: Tensor,
    gate_up_bias: Tensor | None,
    down: Tensor,
    down_row_list: Tensor,
    down_bias: Tensor | None,
    hidden_features: int,
    out_features: int,
    activation: str,
    gate: str,
    gate_up_scales: Tensor | None = None,
    up_scales: Tensor | None = None,
    down_scales: Tensor | None = None,
    down_blocks: int | None = None,
) -> Tensor:
    """A whole MLP in two kernels; hidden blocks without an entry are neither written nor may `down` read them.

    Args:
        x: `[..., in]`.
        gate_up: Blocks of the gate `[nnz, b_out, b_in]`, or of the up projection if there is no gate.
        up: Blocks of the up projection if there is a gate, else None.
        gate_up_row_list: Row list of the gate-up product.
        gate_up_bias: `[hidden_features]` or None.
        down: Blocks of the down projection `[nnz, b_out, b_in]`.
        down_row_list: Row list of the down projection: all its block rows, and no column without a gate-up entry.
        down_bias: `[out_features]` or None.
        hidden_features: Width between the two.
        out_features: Width of the result.
        activation: `silu`, `gelu`, `gelu_tanh` or `none`.
        gate: `none`, `untied` or `tied`.
        gate_up_scales: One for each block of `gate_up` if that is fp8, else None.
        up_scales: One for each block of `up` if that is fp8, else None; None where gate and up share a mask, and with
            it the scales.
        down_scales: One for each block of `down` if that is fp8, else None.
        down_blocks: How many blocks `down_row_list` name, if they give the place of each; None if they do not.

    Returns:
        `[..., out_features]` in the dtype of `x`.

    Raises:
        ValueError: in one sentence if a dtype, device, shape, layout or name is off.
    """
    return run_mlp(
        x, gate_up, up, gate_up_row_list, gate_up_bias, down, down_row_list, down_bias, hidden_features, out_features,
        activation, gate, gate_up_scales, up_scales, down_scales, down_blocks,
    )[0]  # fmt: skip


def run_mlp(
    x, gate_up, up, gate_up_row_list, gate_up_bias, down, down_row_list, down_bias, hidden_features, out_features,
    activation, gate, gate_up_scales=None, up_scales=None, down_scales=None, down_blocks=None, *,
    record=False,
) -> tuple[Tensor, Any]:  # fmt: skip
    """`block_sparse_mlp` without its operator.

    Args:
        record: Whether to make a replay; all others as `block_sparse_mlp`.

    Returns:
        The result, and `replay.Replay` of the call; None if none was asked for, or the call cannot be repeated so.
    """
    _check(x, gate_up, up, gate_up_row_list, gate_up_bias, hidden_features, activation, gate, gate_up_scales, up_scales)
    hidden = x.new_empty(0, hidden_features)
    _check(hidden, down, None, down_row_list, down_bias, out_features, "none", "none", down_scales, None)
    if down_row_list.shape[0] * down.shape[1] != out_features:
        raise ValueError(
            f"down_row_list holds {down_row_list.shape[0]} of {out_features // down.shape[1]} block rows; "
            f"build them without live_rows"
        )
    flat = x.reshape(-1, x.shape[-1]).contiguous()
    up, up_scales = _readable(flat, up, gate_up_scales if gate == "tied" else up_scales)
    gate_up, gate_up_scales = _readable(flat, gate_up, gate_up_scales)
    down, down_scales = _readable(flat, down, down_scales)
    of_front = {"scales": gate_up_scales, "up": up, "up_scales": up_scales}
    of_down = {"scales": down_scales, "blocks": down_blocks}
    if cpu.supports(flat, gate_up, down):
        first = cpu.Operands(gate_up, up, gate_up_row_list, gate_up_bias, hidden_features, activation, gate)
        second = cpu.Operands(down, None, down_row_list, down_bias, out_features, blocks=down_blocks)
        out = cpu.products(flat, first, second)
        return out.view(*x.shape[:-1], out_features), None
    if not (_runs_on_triton(flat, gate_up) and _runs_on_triton(flat, down)):
        hidden = _plain_product(
            flat, gate_up, gate_up_row_list, gate_up_bias, hidden_features, activation, gate, **of_front
        )
        out = _plain_product(hidden, down, down_row_list, down_bias, out_features, "none", "none", **of_down)
        return out.view(*x.shape[:-1], out_features), None
    return launch_mlp(
        flat.view(x.shape), gate_up, up, gate_up_row_list, gate_up_bias, down, down_row_list, down_bias,
        hidden_features, out_features, activation, gate, gate_up_scales, up_scales, down_scales, down_blocks,
        record=record,
    )  # fmt: skip


@block_sparse_mlp.register_fake
def _(
    x,
    gate_up,
    up,
    gate_up_row_list,
    gate_up_bias,
    down,
    down_row_list,
    down_bias,
    hidden_features,
    out_features,
    activation,
    gate,
    gate_up_scales=None,
    up_scales=None,
    down_scales=None,
    down_blocks=None,
):
    return x.new_empty(*x.shape[:-1], out_features)


def _check(x, values, up, row_list, bias, out_features, activation, gate, scales, up_scales) -> None:
    if gate not in GATES:
        raise ValueError(f"gate {gate!r} is unknown; use one of {', '.join(GATES)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r} is unknown; use one of {', '.join(ACTIVATIONS)}")
    if gate != "none" and bias is not None:
        raise ValueError("a gated product takes no bias; pass None")
    if (gate == "none") != (up is None):
        raise ValueError(
            f"gate {gate!r} goes {'without' if gate == 'none' else 'with'} `up`, the up projection's blocks"
        )
    check_row_lists(x, values, row_list, out_features, values.shape[1], scales)
    check_bias(bias, out_features, x)
    if up is None:
        return
    check_row_lists(x, up, row_list, out_features, values.shape[1], scales if gate == "tied" else up_scales)
    agree = up.shape[1:] == values.shape[1:] and up.dtype == values.dtype
    if not agree or (gate == "tied" and up.shape[0] != values.shape[0]):
        raise ValueError(
            f"the gate's blocks are {values.dtype} {list(values.shape)} and those of the up projection "
            f"{up.dtype} {list(up.shape)}; their dtype and sides must agree, and where they share a mask their number"
        )


def _plain_product(x, values, row_list, bias, out_features, activation, gate, scales=None, up=None, up_scales=None,
                   blocks=None):  # fmt: skip
    if scales is None and batched.pays(x):
        return batched.product(x, values, row_list, bias, out_features, activation, gate, up, blocks)
    return reference.product(
        x, values, row_list, bias, out_features, activation, gate, scales, up, up_scales, blocks
    )  # fmt: skip


def _readable(x: Tensor, values: Tensor | None, scales: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    if scales is None or (x.is_cuda and _converts_float8(x.device)):
        return values, scales
    return dequantize(values, scales, x.dtype), None


def _converts_float8(device: torch.device) -> bool:
    # Triton converts e4m3 from compute capability 8.9 on; older GPUs get the values back in the dtype of x, each call.
    return torch.cuda.get_device_capability(device) >= (8, 9)


def _runs_on_triton(x: Tensor, values: Tensor) -> bool:
    return x.is_cuda and triton_product is not None and triton_product.supports(values)
