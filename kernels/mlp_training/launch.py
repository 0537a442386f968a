"""Launches the training kernels on contiguous tensors; twins of the same names are in `train_reference`."""

from __future__ import annotations

import torch
import triton
from blast_kernels.mlp_training import heuristics
from blast_kernels.mlp_training.gate_up import gate_up_kernel
from blast_kernels.mlp_training.gather_matmul import gather_product as _gather_product
from blast_kernels.mlp_training.heuristics import SddmmConfig, TileConfig
from blast_kernels.mlp_training.hidden_grad import hidden_grad as _hidden_grad
from blast_kernels.mlp_training.sddmm import sample as _sample
from blast_kernels.mlp_training.sddmm import sum_parts
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

INTERPRETED = triton.knobs.runtime.interpret
SUM_WIDTH = 1024


def supports(x: Tensor, blocks: list[Tensor]) -> bool:
    """Whether the kernels take this dtype and these block shapes; the twins take all."""
    sides = [side for values in blocks for side in values.shape[1:]]
    return heuristics.supports(*sides) and x.dtype in (torch.float32, torch.float16, torch.bfloat16)


def front(
    x: Tensor, values: list[Tensor], records: Tensor, bias: Tensor | None, activation: str, gate: str,
    config: TileConfig | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Pre-activations and hidden activations of the live hidden blocks; arguments as `train_reference.front`."""
    if _emulates(x):
        out = front(x.float(), [v.float() for v in values], records, _float(bias), activation, gate, config)
        return out[0].to(x.dtype), out[1].to(x.dtype)
    b_hidden, b_in = values[0].shape[1:]
    live = records.shape[0] * b_hidden
    pre = torch.empty(x.shape[0], len(values) * live, dtype=x.dtype, device=x.device)
    hidden = torch.empty(x.shape[0], live, dtype=x.dtype, device=x.device)
    if hidden.numel() == 0:
        return pre, hidden
    config = config or _tile_config("front", x, b_hidden, b_in, gate)
    token_tiles = _ceil(x.shape[0], config.tile)
    with torch.cuda.device_of(x):
        gate_up_kernel[(records.shape[0] * token_tiles * (b_hidden // config.slice),)](
            _describe(x, config.tile, config.k),
            _describe_blocks(values[0], config.slice, config.k),
            _describe_blocks(values[-1], config.slice, config.k),
            _describe(pre, config.tile, config.slice),
            _describe(hidden, config.tile, config.slice),
            records,
            x if bias is None else bias,
            records.shape[0],
            token_tiles,
            min(config.group, token_tiles),
            records.shape[1],
            B_HIDDEN=b_hidden,
            B_IN=b_in,
            SLICE=config.slice,
            K=config.k,
            TILE=config.tile,
            GATE=gate,
            ACTIVATION=activation,
            HAS_BIAS=bias is not None,
            WEIGHTS_FIRST=config.weights_first,
            STAGES=config.stages,
            PRECISION=_precision(x),
            OPAQUE=not INTERPRETED and x.element_size() == 2,
            num_warps=config.warps,
        )
    return pre, hidden


def gather_product(
    x: Tensor,
    values: list[Tensor],
    records: Tensor,
    bias: Tensor | None,
    turned: bool,
    config: TileConfig | None = None,
) -> Tensor:
    """`Σ x · block` through lists of one or two matrices; arguments as `train_reference.gather_product`."""
    if _emulates(x):
        wide = [v.float() for v in values]
        return gather_product(x.float(), wide, records, _float(bias), turned, config).to(x.dtype)
    b_out, b_in = values[0].shape[1:]
    side, inner = (b_in, b_out) if turned else (b_out, b_in)
    y = torch.empty(x.shape[0], records.shape[0] * side, dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    if x.numel() == 0:
        x = y.new_zeros(x.shape[0], inner)  # no live hidden block: nothing reads it, but a descriptor must describe it
    config = config or _tile_config("inputs" if turned else "down", x, side, inner, "none", records.shape[1])
    token_tiles = _ceil(x.shape[0], config.tile)
    w_box = (config.k, config.slice) if turned else (config.slice, config.k)
    with torch.cuda.device_of(x):
        _gather_product[(records.shape[0] * token_tiles * (side // config.slice),)](
            _describe(x, config.tile, config.k),
            _describe_blocks(values[0], *w_box),
            _describe_blocks(values[-1], *w_box),
            _describe(y, config.tile, config.slice),
            records,
            x if bias is None else bias,
            records.shape[0],
            token_tiles,
            min(config.group, token_tiles),
            records.shape[1],
            B_OUT=b_out,
            B_IN=b_in,
            SLICE=config.slice,
            K=config.k,
            TILE=config.tile,
            TURNED=turned,
            TWO=len(values) == 2,
            HAS_BIAS=bias is not None,
            WEIGHTS_FIRST=config.weights_first,
            STAGES=config.stages,
            PRECISION=_precision(x),
            num_warps=config.warps,
        )
    return y


def hidden_grad(
    grad: Tensor, down: Tensor, pre: Tensor, records: Tensor, activation: str, has_bias: bool,
    config: TileConfig | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradient of the pre-activations, hidden activations, bias gradient; as `train_reference.hidden_grad`."""
    if _emulates(grad):
        out = hidden_grad(grad.float(), down.float(), pre.float(), records, activation, has_bias, config)
        return out[0].to(grad.dtype), out[1].to(grad.dtype), out[2]
    b_out, b_hidden = down.shape[1:]
    live = records.shape[0] * b_hidden
    grad_pre = torch.empty(pre.shape, dtype=pre.dtype, device=pre.device)
    hidden = torch.empty(pre.shape[0], live, dtype=pre.dtype, device=pre.device)
    config = config or _tile_config("hidden", grad, b_hidden, b_out, "none")
    token_tiles = _ceil(grad.shape[0], config.tile)
    parts = torch.empty(token_tiles, live if has_bias else 0, dtype=torch.float32, device=pre.device)
    if hidden.numel():
        with torch.cuda.device_of(grad):
            _hidden_grad[(records.shape[0] * token_tiles * (b_hidden // config.slice),)](
                _describe(grad, config.tile, config.k),
                _describe_blocks(down, config.k, config.slice),
                _describe(pre, config.tile, config.slice),
                _describe(grad_pre, config.tile, config.slice),
                _describe(hidden, config.tile, config.slice),
                records,
                parts,
                records.shape[0],
                token_tiles,
                min(config.group, token_tiles),
                records.shape[1],
                B_OUT=b_out,
                B_HIDDEN=b_hidden,
                SLICE=config.slice,
                K=config.k,
                TILE=config.tile,
                GATED=pre.shape[1] == 2 * live,
                ACTIVATION=activation,
                HAS_BIAS=has_bias,
                STAGES=config.stages,
                PRECISION=_precision(grad),
                num_warps=config.warps,
            )
    return grad_pre, hidden, parts.sum(0)


def sample(
    own: Tensor, shared: Tensor, records: Tensor, shapes: list[tuple[int, int, int]], own_is_out: bool,
    config: SddmmConfig | None = None, dtype: torch.dtype | None = None,
) -> list[Tensor]:  # fmt: skip
    """Gradients of the blocks of one or two matrices; arguments as `train_reference.sample`."""
    dtype = dtype or own.dtype
    if _emulates(own):
        return [out.to(dtype) for out in sample(own.float(), shared.float(), records, shapes, own_is_out, config)]
    outs = [torch.empty(shape, dtype=dtype, device=own.device) for shape in shapes]
    slots = sum(shape[0] for shape in shapes)
    if slots == 0 or own.numel() == 0:
        return [out.zero_() for out in outs]
    b_own, b_shared = shapes[0][1:] if own_is_out else reversed(shapes[0][1:])
    size = b_own * b_shared
    members = records.shape[1] // 2 - 1
    if config is None:
        wide, groups = own.dtype == torch.float32, records.shape[0]
        config = heuristics.sddmm_config(b_own, b_shared, members, wide, _hopper(own), groups)
    steps = _ceil(own.shape[0], config.k)
    parts = config.parts or heuristics.parts_for(records.shape[0], members, slots, own.shape[0], size, config)
    parts = min(parts, steps)
    target = outs
    if parts > 1:
        target = [torch.empty(parts, slots * size, dtype=torch.float32, device=own.device)]
    first_slots = shapes[0][0]
    with torch.cuda.device_of(own):
        _sample[(records.shape[0] * parts,)](
            _describe(own, config.k, b_own),
            _describe(shared, config.k, b_shared),
            records,
            target[0],
            target[-1],
            records.shape[0],
            steps,
            _ceil(steps, parts),
            slots,
            first_slots,
            records.shape[1],
            B_OWN=b_own,
            B_SHARED=b_shared,
            K=config.k,
            MEMBERS=members,
            OWN_IS_OUT=own_is_out,
            PARTS=parts > 1,
            STAGES=config.stages,
            PRECISION=_precision(own),
            num_warps=config.warps,
        )
        if parts > 1:
            grid = (_ceil(slots * size, SUM_WIDTH),)
            sum_parts[grid](
                target[0], outs[0], outs[-1], parts, slots * size, first_slots * size, WIDTH=SUM_WIDTH, num_warps=4
            )
    return outs


def _ceil(number: int, size: int) -> int:
    """`number / size`, rounded up; `triton.cdiv`, which kernels can call too, takes the host 2 µs."""
    return -(-number // size)


def _tile_config(kernel: str, x: Tensor, side: int, inner: int, gate: str, width: int = 0) -> TileConfig:
    return heuristics.tile_config(kernel, x.shape[0], side, inner, gate, x.dtype == torch.float32, _hopper(x), width)


def _describe(matrix: Tensor, rows: int, columns: int) -> TensorDescriptor:
    if matrix.data_ptr() % 16:
        # A view into another tensor may start anywhere; the tensor memory accelerator wants 16 bytes.
        matrix = matrix.clone()
    return TensorDescriptor.from_tensor(matrix, [rows, columns])


def _describe_blocks(values: Tensor, rows: int, columns: int) -> TensorDescriptor:
    if values.shape[0] == 0:
        values = values.new_zeros(1, *values.shape[1:])  # a descriptor cannot describe nothing; no list names a block
    return _describe(values.view(-1, values.shape[2]), rows, columns)


def _emulates(x: Tensor) -> bool:
    """Whether this is bfloat16 in the interpreter, which would multiply its raw bits."""
    return INTERPRETED and x.dtype == torch.bfloat16


def _float(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.float()


def _hopper(x: Tensor) -> bool:
    return not x.is_cuda or torch.cuda.get_device_capability(x.device)[0] >= 9


def _precision(x: Tensor) -> str:
    # tf32 would lose the three digits that float32 is asked for.
    return "ieee" if x.dtype == torch.float32 else "tf32"
