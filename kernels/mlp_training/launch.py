"""Launches the training kernels on contiguous tensors: `gate_up`, `gather_matmul`, `hidden_grad`, `sddmm`.

Each function has a reference of the same name in `reference`, which describes its arguments.
"""

from __future__ import annotations

import torch
import triton
from blast_kernels.common.gpu_limits import gpu_limits
from blast_kernels.mlp_training import heuristics
from blast_kernels.mlp_training.gate_up import gate_up_kernel
from blast_kernels.mlp_training.gather_matmul import gather_matmul_kernel
from blast_kernels.mlp_training.heuristics import SddmmConfig, TileConfig
from blast_kernels.mlp_training.hidden_grad import hidden_grad_kernel
from blast_kernels.mlp_training.sddmm import sddmm_kernel, sum_parts_kernel
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

INTERPRETED = triton.knobs.runtime.interpret
SUM_WIDTH = 1024


def supports(x: Tensor, blocks: list[Tensor]) -> bool:
    """Whether the kernels take this dtype and these block shapes; the reference takes all."""
    sides = [side for values in blocks for side in values.shape[1:]]
    return heuristics.supports(*sides) and x.dtype in (torch.float32, torch.float16, torch.bfloat16)


def gate_up(
    x: Tensor, values: list[Tensor], row_lists: Tensor, bias: Tensor | None, activation: str, gate: str,
    config: TileConfig | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Pre-activations and hidden activations of the live hidden blocks; as `reference.gate_up`."""
    if _emulates(x):
        out = gate_up(x.float(), [v.float() for v in values], row_lists, _float(bias), activation, gate, config)
        return out[0].to(x.dtype), out[1].to(x.dtype)
    b_hidden, b_in = values[0].shape[1:]
    live = row_lists.shape[0] * b_hidden
    pre = torch.empty(x.shape[0], len(values) * live, dtype=x.dtype, device=x.device)
    hidden = torch.empty(x.shape[0], live, dtype=x.dtype, device=x.device)
    if hidden.numel() == 0:
        return pre, hidden
    config = config or _tile_config("gate_up", x, b_hidden, b_in, gate)
    token_tiles = _ceil(x.shape[0], config.tile)
    with torch.cuda.device_of(x):
        gate_up_kernel[(row_lists.shape[0] * token_tiles * (b_hidden // config.slice),)](
            _describe(x, config.tile, config.k),
            _describe_blocks(values[0], config.slice, config.k),
            _describe_blocks(values[-1], config.slice, config.k),
            _describe(pre, config.tile, config.slice),
            _describe(hidden, config.tile, config.slice),
            row_lists,
            x if bias is None else bias,
            row_lists.shape[0],
            token_tiles,
            min(config.group, token_tiles),
            row_lists.shape[1],
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


def gather_matmul(
    x: Tensor,
    values: list[Tensor],
    row_lists: Tensor,
    bias: Tensor | None,
    transposed: bool,
    config: TileConfig | None = None,
) -> Tensor:
    """`Σ x · block` through row lists of one or two matrices; as `reference.gather_matmul`."""
    if _emulates(x):
        wide = [v.float() for v in values]
        return gather_matmul(x.float(), wide, row_lists, _float(bias), transposed, config).to(x.dtype)
    b_out, b_in = values[0].shape[1:]
    side, inner = (b_in, b_out) if transposed else (b_out, b_in)
    y = torch.empty(x.shape[0], row_lists.shape[0] * side, dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    if x.numel() == 0:
        x = y.new_zeros(
            x.shape[0], inner
        )  # No hidden block is live: nothing is read, but a tensor descriptor cannot be empty.
    config = config or _tile_config("input_grad" if transposed else "down", x, side, inner, "none", row_lists.shape[1])
    token_tiles = _ceil(x.shape[0], config.tile)
    w_box = (config.k, config.slice) if transposed else (config.slice, config.k)
    with torch.cuda.device_of(x):
        gather_matmul_kernel[(row_lists.shape[0] * token_tiles * (side // config.slice),)](
            _describe(x, config.tile, config.k),
            _describe_blocks(values[0], *w_box),
            _describe_blocks(values[-1], *w_box),
            _describe(y, config.tile, config.slice),
            row_lists,
            x if bias is None else bias,
            row_lists.shape[0],
            token_tiles,
            min(config.group, token_tiles),
            row_lists.shape[1],
            B_OUT=b_out,
            B_IN=b_in,
            SLICE=config.slice,
            K=config.k,
            TILE=config.tile,
            TRANSPOSED=transposed,
            TWO_MATRICES=len(values) == 2,
            HAS_BIAS=bias is not None,
            WEIGHTS_FIRST=config.weights_first,
            STAGES=config.stages,
            PRECISION=_precision(x),
            num_warps=config.warps,
        )
    return y


def hidden_grad(
    grad: Tensor, down: Tensor, pre: Tensor, row_lists: Tensor, activation: str, has_bias: bool,
    config: TileConfig | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradient of the pre-activations, hidden activations, bias gradient; as `reference.hidden_grad`."""
    if _emulates(grad):
        out = hidden_grad(grad.float(), down.float(), pre.float(), row_lists, activation, has_bias, config)
        return out[0].to(grad.dtype), out[1].to(grad.dtype), out[2]
    b_out, b_hidden = down.shape[1:]
    live = row_lists.shape[0] * b_hidden
    grad_pre = torch.empty(pre.shape, dtype=pre.dtype, device=pre.device)
    hidden = torch.empty(pre.shape[0], live, dtype=pre.dtype, device=pre.device)
    config = config or _tile_config("hidden_grad", grad, b_hidden, b_out, "none")
    token_tiles = _ceil(grad.shape[0], config.tile)
    parts = torch.empty(token_tiles, live if has_bias else 0, dtype=torch.float32, device=pre.device)
    if hidden.numel():
        with torch.cuda.device_of(grad):
            hidden_grad_kernel[(row_lists.shape[0] * token_tiles * (b_hidden // config.slice),)](
                _describe(grad, config.tile, config.k),
                _describe_blocks(down, config.k, config.slice),
                _describe(pre, config.tile, config.slice),
                _describe(grad_pre, config.tile, config.slice),
                _describe(hidden, config.tile, config.slice),
                row_lists,
                parts,
                row_lists.shape[0],
                token_tiles,
                min(config.group, token_tiles),
                row_lists.shape[1],
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


def sddmm(
    own: Tensor, shared: Tensor, block_groups: Tensor, shapes: list[tuple[int, int, int]], own_is_out: bool,
    config: SddmmConfig | None = None, dtype: torch.dtype | None = None,
) -> list[Tensor]:  # fmt: skip
    """Gradients of the blocks of one or two matrices; as `reference.sddmm`."""
    dtype = dtype or own.dtype
    if _emulates(own):
        return [out.to(dtype) for out in sddmm(own.float(), shared.float(), block_groups, shapes, own_is_out, config)]
    outs = [torch.empty(shape, dtype=dtype, device=own.device) for shape in shapes]
    slots = sum(shape[0] for shape in shapes)
    if slots == 0 or own.numel() == 0:
        return [out.zero_() for out in outs]
    b_own, b_shared = shapes[0][1:] if own_is_out else reversed(shapes[0][1:])
    size = b_own * b_shared
    members = block_groups.shape[1] // 2 - 1
    if config is None:
        wide, groups = own.dtype == torch.float32, block_groups.shape[0]
        config = heuristics.sddmm_config(b_own, b_shared, members, wide, _hopper(own), groups)
    steps = _ceil(own.shape[0], config.k)
    parts = config.parts or heuristics.split_k_parts(block_groups.shape[0], members, slots, own.shape[0], size, config)
    parts = min(parts, steps)
    target = outs
    if parts > 1:
        target = [torch.empty(parts, slots * size, dtype=torch.float32, device=own.device)]
    first_slots = shapes[0][0]
    with torch.cuda.device_of(own):
        sddmm_kernel[(block_groups.shape[0] * parts,)](
            _describe(own, config.k, b_own),
            _describe(shared, config.k, b_shared),
            block_groups,
            target[0],
            target[-1],
            block_groups.shape[0],
            steps,
            _ceil(steps, parts),
            slots,
            first_slots,
            block_groups.shape[1],
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
            sum_parts_kernel[grid](
                target[0], outs[0], outs[-1], parts, slots * size, first_slots * size, WIDTH=SUM_WIDTH, num_warps=4
            )
    return outs


def _ceil(number: int, size: int) -> int:
    """`number / size`, rounded up. `triton.cdiv`, which also works inside kernels, takes the CPU 2 µs."""
    return -(-number // size)


def _tile_config(kernel: str, x: Tensor, side: int, inner: int, gate: str, width: int = 0) -> TileConfig:
    return heuristics.tile_config(kernel, x.shape[0], side, inner, gate, x.dtype == torch.float32, _hopper(x), width)


def _describe(matrix: Tensor, rows: int, columns: int) -> TensorDescriptor:
    if matrix.data_ptr() % 16:
        # A view may start anywhere, but the tensor memory accelerator needs an address that is a multiple of 16.
        matrix = matrix.clone()
    return TensorDescriptor.from_tensor(matrix, [rows, columns])


def _describe_blocks(values: Tensor, rows: int, columns: int) -> TensorDescriptor:
    if values.shape[0] == 0:
        values = values.new_zeros(
            1, *values.shape[1:]
        )  # A tensor descriptor cannot be empty; no list names this block.
    return _describe(values.view(-1, values.shape[2]), rows, columns)


def _emulates(x: Tensor) -> bool:
    """Whether this is bfloat16 in Triton's interpreter, which would multiply its raw bits."""
    return INTERPRETED and x.dtype == torch.bfloat16


def _float(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.float()


def _hopper(x: Tensor) -> bool:
    # Blackwell GPUs for graphics (12.x) have less than half of a Hopper's shared memory.
    return gpu_limits(x.device).multiplies_from_shared_memory


def _precision(x: Tensor) -> str:
    # tf32 would lose three of the digits that a user of float32 expects.
    return "ieee" if x.dtype == torch.float32 else "tf32"
