"""A whole MLP of up to 16 tokens in one launch: the down product waits within the kernel for the hidden activations.

Two kernels, the second launched early (`launch.Chain`), are what `ops` runs. This is a trial of one kernel for models
whose MLP is bound by latency (8B, 1B). It was not measured yet, and nothing but the suite `kernels` calls it.

Each program computes a slice of a block row of gate and up and counts itself in. The programs with the shortest rows
then compute a slice of the down product each: they ask for its first weights, wait until all are counted, and go on.
No more of them wait than there are multiprocessors, each of which holds two programs, so one that does not wait always
finds a place. That holds for one call at a time: calls on several streams could take each other's places and stop. The
sums have a fixed order, so equal inputs give equal bits. Reference: `reference.product`, twice.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from blast_kernels.common.epilogue import activate, split_rows
from blast_kernels.common.gpu_limits import gpu_limits
from blast_kernels.mlp_inference.heuristics import KernelConfig, heuristic_config
from blast_kernels.mlp_inference.stream import header, prefetch
from torch import Tensor

INTERPRETED = triton.knobs.runtime.interpret
# Tokens of the one token tile, and the counters of a call: programs that arrived, and that went on.
TILE, COUNTERS = 16, 2


@triton.jit
def _row_product(
    x, values, up_values, columns, start, up_start, gates, ups, piece, token, present, in_features,
    B_OUT: tl.constexpr, B_IN: tl.constexpr, SLICE: tl.constexpr, TILE: tl.constexpr, GATE: tl.constexpr,
    HAS_PLACES: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # A slice of a block row times one token tile, one block a step, as in `stream`.
    WIDE: tl.constexpr = 2 if GATE == "tied" else 1
    k = tl.arange(0, B_IN)
    w_rows = tl.arange(0, SLICE * WIDE)
    if GATE == "tied":
        # Eight rows of the gate, eight of the up projection: `split_rows` then moves no data.
        from_up = (w_rows // 8) % 2 == 1
        w_rows = (w_rows // 16) * 8 + w_rows % 8
    w_offsets = (piece * SLICE + w_rows)[:, None] * B_IN + k[None, :]
    w_pointers = values + w_offsets
    if GATE == "tied":
        w_pointers = tl.where(from_up[:, None], up_values + w_offsets, w_pointers)
    x_pointers = x + token[None, :].to(tl.int64) * in_features + k[:, None]
    total = tl.zeros((SLICE * WIDE, TILE), dtype=tl.float32)
    up = tl.zeros((SLICE, TILE), dtype=tl.float32)
    column = tl.load(columns)
    for step in tl.range(0, gates + ups, num_stages=STAGES):
        in_gate = step < gates
        place = start + step
        if HAS_PLACES:
            place = start + (column >> 16)
            column = column & 0xFFFF
        if GATE == "untied":
            place = tl.where(in_gate, place, up_start - gates + step)
            source = tl.where(in_gate, values, up_values)
            w_at = source + w_offsets + place.to(tl.int64) * (B_OUT * B_IN)
        else:
            w_at = w_pointers + place.to(tl.int64) * (B_OUT * B_IN)
        w = tl.load(w_at, eviction_policy="evict_first")  # [WIDE * SLICE, B_IN]
        # Through L2: the first level cache of this multiprocessor does not see what others wrote.
        tile = tl.load(x_pointers + column * B_IN, mask=present[None, :], other=0.0, cache_modifier=".cg")
        column = tl.load(columns + step + 1)
        if GATE == "untied":
            partial = tl.dot(w, tile, input_precision=PRECISION)
            total += tl.where(in_gate, partial, 0.0)
            up += tl.where(in_gate, 0.0, partial)
        else:
            total = tl.dot(w, tile, total, input_precision=PRECISION)
    return total, up


@triton.jit(do_not_specialize=["tokens", "gate_up_items", "down_items"])
def single(
    x, values, up_values, down_values, gate_up_list, down_list, bias, down_bias, hidden, y, counters, tokens,
    in_features, hidden_features, out_features, width, down_width, gate_up_items, down_items,
    B_OUT: tl.constexpr, B_IN: tl.constexpr, DOWN_OUT: tl.constexpr, DOWN_IN: tl.constexpr, SLICE: tl.constexpr,
    DOWN_SLICE: tl.constexpr, TILE: tl.constexpr, GATE: tl.constexpr, ACTIVATION: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_DOWN_BIAS: tl.constexpr, HAS_PLACES: tl.constexpr, STAGES: tl.constexpr, DOWN_STAGES: tl.constexpr,
    PRECISION: tl.constexpr, OPAQUE: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    token = tl.arange(0, TILE)
    present = token < tokens
    if FIRST and program < gate_up_items:
        SLICES: tl.constexpr = B_OUT // SLICE
        piece = program % SLICES
        entry = gate_up_list + (program // SLICES) * width
        row, start, up_start, gates, ups = header(entry)
        total, up = _row_product(
            x, values, up_values, entry + 4, start, up_start, gates, ups, piece, token, present, in_features,
            B_OUT, B_IN, SLICE, TILE, GATE, False, STAGES, PRECISION,
        )  # fmt: skip
        out_column = row * B_OUT + piece * SLICE + tl.arange(0, SLICE)
        FAST: tl.constexpr = OPAQUE and hidden.dtype.element_ty == tl.bfloat16
        if GATE == "tied":
            gate, up = split_rows(total, SLICE, TILE)
            out = activate(gate, ACTIVATION, FAST) * up
        elif GATE == "untied":
            out = activate(total, ACTIVATION, FAST) * up
        else:
            if HAS_BIAS:
                total += tl.load(bias + out_column).to(tl.float32)[:, None]
            out = activate(total, ACTIVATION, FAST)
        target = hidden + token[None, :].to(tl.int64) * hidden_features + out_column[:, None]
        tl.store(target, out.to(hidden.dtype.element_ty), mask=present[None, :])
        if SECOND:
            # All threads have stored before one of them counts.
            tl.debug_barrier()
            tl.atomic_add(counters, 1, sem="release")
    # Row lists are sorted by length, longest first: the last programs have the shortest block rows.
    item = tl.num_programs(0) - 1 - program
    if SECOND and item < down_items:
        DOWN_SLICES: tl.constexpr = DOWN_OUT // DOWN_SLICE
        piece = item % DOWN_SLICES
        entry = down_list + (item // DOWN_SLICES) * down_width
        row, start, _, blocks, _ = header(entry)
        if OPAQUE and blocks > 0:
            BYTES: tl.constexpr = DOWN_SLICE * DOWN_IN * down_values.dtype.element_ty.primitive_bitwidth // 8
            first = start + (tl.load(entry + 4) >> 16) if HAS_PLACES else start
            prefetch(down_values + first.to(tl.int64) * (DOWN_OUT * DOWN_IN) + piece * DOWN_SLICE * DOWN_IN, BYTES)
        if FIRST:
            arrived = tl.atomic_add(counters, 0, sem="acquire")
            while arrived < gate_up_items:
                arrived = tl.atomic_add(counters, 0, sem="acquire")
            tl.debug_barrier()
            # Who goes on last leaves the counters as they were.
            if tl.atomic_add(counters + 1, 1, sem="acq_rel") == down_items - 1:
                tl.store(counters, 0)
                tl.store(counters + 1, 0)
        total, _ = _row_product(
            hidden, down_values, down_values, entry + 4, start, start, blocks, 0, piece, token, present,
            hidden_features, DOWN_OUT, DOWN_IN, DOWN_SLICE, TILE, "none", HAS_PLACES, DOWN_STAGES, PRECISION,
        )  # fmt: skip
        out_column = row * DOWN_OUT + piece * DOWN_SLICE + tl.arange(0, DOWN_SLICE)
        if HAS_DOWN_BIAS:
            total += tl.load(down_bias + out_column).to(tl.float32)[:, None]
        target = y + token[None, :].to(tl.int64) * out_features + out_column[:, None]
        tl.store(target, total.to(y.dtype.element_ty), mask=present[None, :])


def refusal(
    tokens: int, values: Tensor, gate_up_row_list: Tensor, down: Tensor, down_row_list: Tensor, gate: str
) -> str | None:
    """Why one launch cannot run this MLP, in a sentence; None if it can. Arguments as `mlp`."""
    if tokens > TILE:
        return f"one launch takes up to {TILE} tokens, not {tokens}"
    if values.element_size() == 1 or min(*values.shape[1:], *down.shape[1:]) < 32:
        return "one launch takes blocks of 32 and more, and no float8"
    if not gate_up_row_list.shape[0]:
        return "no hidden block is live"
    _, second = configs(values, gate_up_row_list, down, down_row_list, gate)
    waiting = down_row_list.shape[0] * (down.shape[1] // second.slice)
    most = gpu_limits(values.device).multiprocessors
    return None if waiting <= most else f"{waiting} programs would wait, and there are {most} multiprocessors"


def configs(
    values: Tensor, gate_up_row_list: Tensor, down: Tensor, down_row_list: Tensor, gate: str
) -> tuple[KernelConfig, KernelConfig]:
    """How both products run: slices and stages are those of the rules for `stream`, with one block a step."""
    made = []
    for part, row_list, kind in ((values, gate_up_row_list, gate), (down, down_row_list, "none")):
        _, b_out, b_in = part.shape
        wide = part.dtype == torch.float32
        config = heuristic_config(1, row_list.shape[0], b_out, b_in, kind, wide, row_blocks=0.0)
        made.append(config._replace(k=b_in, split=1))
    return made[0], made[1]


def mlp(
    x: Tensor, values: Tensor, up: Tensor | None, gate_up_row_list: Tensor, bias: Tensor | None, down: Tensor,
    down_row_list: Tensor, down_bias: Tensor | None, hidden_features: int, activation: str, gate: str,
    counters: Tensor, down_blocks: int | None = None,
) -> Tensor:  # fmt: skip
    """A whole MLP in one launch. In Triton's interpreter, which runs one program after the other, in two.

    Args:
        x: `[tokens, in]`, contiguous, at most `TILE` tokens.
        values: Blocks of the gate `[nnz, b_out, b_in]`, or of the up projection if there is no gate.
        up: Blocks of the up projection if there is a gate, else None.
        gate_up_row_list: Row list of the gate-up product.
        bias: `[hidden_features]` or None; None with a gate.
        down: Blocks of the down projection.
        down_row_list: Row list of the down projection: all its block rows.
        down_bias: `[out_features]` or None.
        hidden_features: Width between the two.
        activation: `silu`, `gelu`, `gelu_tanh` or `none`.
        gate: `none`, `untied` or `tied`.
        counters: int32 `[COUNTERS]`, zeros; zeros again afterwards. No other call may run at the same time: with the
            same counters it would read hidden activations that are not written yet, with others both could stop.
        down_blocks: How many blocks `down_row_list` names, if it gives the place of each; None if it does not.

    Returns:
        `[tokens, out_features]` in the dtype of `x`.

    Raises:
        ValueError: if `refusal` has a reason.
    """
    if cause := refusal(x.shape[0], values, gate_up_row_list, down, down_row_list, gate):
        raise ValueError(f"{cause}; call torch.ops.blast.block_sparse_mlp instead")
    first, second = configs(values, gate_up_row_list, down, down_row_list, gate)
    hidden = torch.empty(x.shape[0], hidden_features, dtype=x.dtype, device=x.device)
    y = torch.empty(x.shape[0], down_row_list.shape[0] * down.shape[1], dtype=x.dtype, device=x.device)
    items = gate_up_row_list.shape[0] * (values.shape[1] // first.slice)
    down_items = down_row_list.shape[0] * (down.shape[1] // second.slice)
    for parts in ((True, False), (False, True)) if INTERPRETED else ((True, True),):
        single[(max(items, down_items),)](
            x, values, values if up is None else up, down, gate_up_row_list, down_row_list, x if bias is None else bias,
            x if down_bias is None else down_bias, hidden, y, counters, x.shape[0], x.shape[1], hidden_features,
            y.shape[1], gate_up_row_list.shape[1], down_row_list.shape[1], items, down_items,
            B_OUT=values.shape[1], B_IN=values.shape[2], DOWN_OUT=down.shape[1], DOWN_IN=down.shape[2],
            SLICE=first.slice, DOWN_SLICE=second.slice, TILE=TILE, GATE=gate, ACTIVATION=activation,
            HAS_BIAS=bias is not None, HAS_DOWN_BIAS=down_bias is not None, HAS_PLACES=down_blocks is not None,
            STAGES=first.stages, DOWN_STAGES=second.stages, PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
            OPAQUE=not INTERPRETED, FIRST=parts[0], SECOND=parts[1], num_warps=4,
        )  # fmt: skip
    return y
