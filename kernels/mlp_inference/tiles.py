"""Many tokens: a token tile times a (slice of a) block row a program, operands through the tensor memory accelerator.

Bound by what the L2 cache delivers and by how many programs a multiprocessor holds to hide each other's start and end:
two or three small programs a multiprocessor beat one with a wider tile and a better ratio of arithmetic to bytes, and
beat a persistent loop over tiles (see NOTES.md). Weights may be float8 with a scale a block (then they have to be on
the M side, whose operand may come from registers); block lists may be split over programs (see `split_k`). Needs
compute capability 9. Reference: `reference.product`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from blast_kernels.common.epilogue import activate, round_now, split_columns, split_rows
from blast_kernels.common.fp8_dequant import widen
from blast_kernels.common.swizzle import swizzled_tile
from blast_kernels.mlp_inference.split_k import clear, is_last, keep, summed
from blast_kernels.mlp_inference.stream import header


@triton.jit
def _accumulate(
    total,
    x_descriptor,
    w_descriptor,
    scales,
    columns,
    token,
    w_row,
    place,
    blocks,
    B_OUT: tl.constexpr,
    B_IN: tl.constexpr,
    SLICE: tl.constexpr,
    K: tl.constexpr,
    GATE: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    HAS_PLACES: tl.constexpr,
    WEIGHTS_FIRST: tl.constexpr,
    STAGES: tl.constexpr,
    OPAQUE: tl.constexpr,
):
    # Blocks from `place` on, as many as `blocks`, whose columns are listed from `columns` on. Where gate and up share a
    # mask the descriptor holds both (see `launch`).
    CHUNKS: tl.constexpr = B_IN // K
    column = tl.load(columns)
    # The scale of a block is fetched as a vector of equal numbers: those are pipelined, single numbers are not.
    scale_pointers = scales + tl.zeros((K,), dtype=tl.int32)
    for step in tl.range(0, blocks * CHUNKS, num_stages=STAGES):
        k = (step % CHUNKS) * K
        if HAS_PLACES:
            at = place + (column >> 16)
            column = column & 0xFFFF
        else:
            at = place + step // CHUNKS
        if GATE == "tied":
            w = w_descriptor.load([at * (B_OUT // 8) + w_row // 8, 0, 0, k]).reshape(2 * SLICE, K)
        else:
            w = w_descriptor.load([at * B_OUT + w_row, k])
        x = x_descriptor.load([token, column * B_IN + k])
        # A scalar load inside the loop is not pipelined: fetched one step ahead; the entry is one entry longer.
        column = tl.load(columns + (step + 1) // CHUNKS)
        if HAS_SCALES:
            w = widen(w, tl.load(scale_pointers + at)[None, :], x.dtype, OPAQUE)
        total = tl.dot(w, x.T, total) if WEIGHTS_FIRST else tl.dot(x, w.T, total)
    return total


@triton.jit
def _accumulate_two(
    gate,
    up,
    x_descriptor,
    w_descriptor,
    up_descriptor,
    columns,
    token,
    w_row,
    place,
    blocks,
    B_OUT: tl.constexpr,
    B_IN: tl.constexpr,
    K: tl.constexpr,
    WEIGHTS_FIRST: tl.constexpr,
    STAGES: tl.constexpr,
):
    # Gate and up of one mask, a product each for the same activations.
    CHUNKS: tl.constexpr = B_IN // K
    column = tl.load(columns)
    for step in tl.range(0, blocks * CHUNKS, num_stages=STAGES):
        k = (step % CHUNKS) * K
        row = place * B_OUT + w_row + (step // CHUNKS) * B_OUT
        w = w_descriptor.load([row, k])
        v = up_descriptor.load([row, k])
        x = x_descriptor.load([token, column * B_IN + k])
        column = tl.load(columns + (step + 1) // CHUNKS)
        gate = tl.dot(w, x.T, gate) if WEIGHTS_FIRST else tl.dot(x, w.T, gate)
        up = tl.dot(v, x.T, up) if WEIGHTS_FIRST else tl.dot(x, v.T, up)
    return gate, up


@triton.jit
def _finish(
    total, bias, column, SLICE: tl.constexpr, TILE: tl.constexpr, GATE: tl.constexpr, ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr, WEIGHTS_FIRST: tl.constexpr, FAST: tl.constexpr, UP_FIRST: tl.constexpr,
):  # fmt: skip
    # The epilogue of one accumulator: gate and up side by side, or one matrix with its bias.
    if GATE == "tied":
        if WEIGHTS_FIRST:
            first, second = split_rows(total, SLICE, TILE)
        else:
            first, second = split_columns(total, TILE, SLICE)
        gate, up = (second, first) if UP_FIRST else (first, second)
        out = activate(gate, ACTIVATION, FAST) * up
    else:
        if HAS_BIAS:
            offset = tl.load(bias + column + tl.arange(0, SLICE)).to(tl.float32)
            total += offset[:, None] if WEIGHTS_FIRST else offset[None, :]
        out = activate(total, ACTIVATION, FAST)
    return out


@triton.jit(do_not_specialize=["count", "token_tiles", "GROUP", "clear_count"])
def tiles(
    x_descriptor,
    w_descriptor,
    up_descriptor,
    y_descriptor,
    scales,
    up_scales,
    row_list,
    bias,
    partials,
    counters,
    to_clear,
    count,
    token_tiles,
    GROUP,
    width,
    clear_count,
    B_OUT: tl.constexpr,
    B_IN: tl.constexpr,
    SLICE: tl.constexpr,
    K: tl.constexpr,
    TILE: tl.constexpr,
    GATE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    HAS_PLACES: tl.constexpr,
    PAIRED: tl.constexpr,
    UP_FIRST: tl.constexpr,
    SPLIT: tl.constexpr,
    CLEARS: tl.constexpr,
    WEIGHTS_FIRST: tl.constexpr,
    STAGES: tl.constexpr,
    OPAQUE: tl.constexpr,
    LEADS: tl.constexpr,
    WAITS: tl.constexpr,
):
    SLICES: tl.constexpr = B_OUT // SLICE
    # Gate and up of one mask side by side in one accumulator, or one each.
    WIDE: tl.constexpr = 2 if PAIRED else 1
    TWO: tl.constexpr = GATE != "none" and not PAIRED
    ROWS: tl.constexpr = SLICE * WIDE if WEIGHTS_FIRST else TILE
    COLS: tl.constexpr = TILE if WEIGHTS_FIRST else SLICE * WIDE
    FAST: tl.constexpr = OPAQUE and y_descriptor.dtype == tl.bfloat16
    if WAITS == "first":
        tl.extra.cuda.gdc_wait()
    item = tl.program_id(0)
    part = item % SPLIT
    place = item // SPLIT
    rank, token = swizzled_tile(place // SLICES, count, token_tiles, GROUP)
    token *= TILE
    piece = place % SLICES
    entry = row_list + rank * width
    row, start, up_start, gates, ups = header(entry)
    if LEADS:
        tl.extra.cuda.gdc_launch_dependents()
    if WAITS == "late":
        tl.extra.cuda.gdc_wait()
    if CLEARS:
        clear(to_clear, clear_count, CLEARS)
    w_row = piece * SLICE
    out_column = row * B_OUT + piece * SLICE
    columns = entry + 4
    # Numbers in the list of this block row.
    first = 0
    last = gates + ups
    if SPLIT > 1:
        share = tl.cdiv(last, SPLIT)
        first = tl.minimum(part * share, last)
        last = tl.minimum(first + share, last)
    # In a gate-up product with separate masks, the part of the list before `border` is the gate's.
    border = tl.minimum(tl.maximum(gates, first), last) if GATE == "untied" else last
    total = tl.zeros((ROWS, COLS), dtype=tl.float32)
    if GATE == "tied" and TWO:
        up = tl.zeros((ROWS, COLS), dtype=tl.float32)
        total, up = _accumulate_two(
            total, up, x_descriptor, w_descriptor, up_descriptor, columns + first, token, w_row, start + first,
            border - first, B_OUT, B_IN, K, WEIGHTS_FIRST, STAGES,
        )  # fmt: skip
    else:
        total = _accumulate(
            total, x_descriptor, w_descriptor, scales, columns + first, token, w_row,
            start if HAS_PLACES else start + first, border - first, B_OUT, B_IN, SLICE, K, GATE, HAS_SCALES,
            HAS_PLACES, WEIGHTS_FIRST, STAGES, OPAQUE,
        )  # fmt: skip
    if SPLIT > 1:
        STEP: tl.constexpr = 2 if TWO else 1
        slot = (place * SPLIT + part) * STEP
        keep(partials, slot, total, ROWS, COLS)
    elif GATE == "untied":
        held = round_now(activate(total, ACTIVATION, FAST), y_descriptor.dtype, OPAQUE)
    if GATE == "untied":
        up = tl.zeros((ROWS, COLS), dtype=tl.float32)
        up = _accumulate(
            up, x_descriptor, up_descriptor, up_scales, columns + border, token, w_row, up_start - gates + border,
            last - border, B_OUT, B_IN, SLICE, K, GATE, HAS_SCALES, HAS_PLACES, WEIGHTS_FIRST, STAGES, OPAQUE,
        )  # fmt: skip
    if SPLIT > 1:
        if TWO:
            keep(partials, slot + 1, up, ROWS, COLS)
        if is_last(counters + place, SPLIT):
            slot = place * SPLIT * STEP
            total = summed(partials, slot, STEP, SPLIT, ROWS, COLS)
            if TWO:
                out = activate(total, ACTIVATION, FAST) * summed(partials, slot + 1, STEP, SPLIT, ROWS, COLS)
            else:
                out = _finish(
                    total, bias, out_column, SLICE, TILE, GATE, ACTIVATION, HAS_BIAS, WEIGHTS_FIRST, FAST, UP_FIRST
                )
            out = out.to(y_descriptor.dtype)
            y_descriptor.store([token, out_column], out.T if WEIGHTS_FIRST else out)
    else:
        if GATE == "untied":
            out = held.to(tl.float32) * up
        elif TWO:
            out = activate(total, ACTIVATION, FAST) * up
        else:
            out = _finish(
                total, bias, out_column, SLICE, TILE, GATE, ACTIVATION, HAS_BIAS, WEIGHTS_FIRST, FAST, UP_FIRST
            )
        out = out.to(y_descriptor.dtype)
        y_descriptor.store([token, out_column], out.T if WEIGHTS_FIRST else out)
