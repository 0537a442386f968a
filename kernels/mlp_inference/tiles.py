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


@triton.jit
def _accumulate(
    total,
    x_descriptor,
    w_descriptor,
    scales,
    columns,
    token,
    w_row,
    block,
    blocks,
    STRIDE: tl.constexpr,
    B_IN: tl.constexpr,
    K: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    WEIGHTS_FIRST: tl.constexpr,
    STAGES: tl.constexpr,
    OPAQUE: tl.constexpr,
):
    # Blocks `block … block + blocks` of `values`, whose columns are listed from `columns` on.
    CHUNKS: tl.constexpr = B_IN // K
    column = tl.load(columns)
    # The scale of a block is fetched as a vector of equal numbers: those are pipelined, single numbers are not.
    scale_pointers = scales + block + tl.zeros((K,), dtype=tl.int32)
    for step in tl.range(0, blocks * CHUNKS, num_stages=STAGES):
        k = (step % CHUNKS) * K
        w = w_descriptor.load([block * STRIDE + w_row + (step // CHUNKS) * STRIDE, k])
        x = x_descriptor.load([token, column * B_IN + k])
        # A scalar load inside the loop is not pipelined: fetched one step ahead; the entry is one entry longer.
        column = tl.load(columns + (step + 1) // CHUNKS)
        if HAS_SCALES:
            w = widen(w, tl.load(scale_pointers + step // CHUNKS)[None, :], x.dtype, OPAQUE)
        total = tl.dot(w, x.T, total) if WEIGHTS_FIRST else tl.dot(x, w.T, total)
    return total


@triton.jit
def _finish(
    total, bias, column, SLICE: tl.constexpr, TILE: tl.constexpr, GATE: tl.constexpr, ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr, WEIGHTS_FIRST: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    # The epilogue of one accumulator: gate and up side by side, or one matrix with its bias.
    if GATE == "tied":
        if WEIGHTS_FIRST:
            gate, up = split_rows(total, SLICE, TILE)
        else:
            gate, up = split_columns(total, TILE, SLICE)
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
    y_descriptor,
    scales,
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
    SPLIT: tl.constexpr,
    CLEARS: tl.constexpr,
    WEIGHTS_FIRST: tl.constexpr,
    STAGES: tl.constexpr,
    OPAQUE: tl.constexpr,
    LEADS: tl.constexpr,
    WAITS: tl.constexpr,
):
    SLICES: tl.constexpr = B_OUT // SLICE
    WIDE: tl.constexpr = 2 if GATE == "tied" else 1
    STRIDE: tl.constexpr = WIDE * B_OUT
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
    row = tl.load(entry)
    start = tl.load(entry + 1)
    middle = tl.load(entry + 2)
    end = tl.load(entry + 3)
    if LEADS:
        tl.extra.cuda.gdc_launch_dependents()
    if WAITS == "late":
        tl.extra.cuda.gdc_wait()
    if CLEARS:
        clear(to_clear, clear_count, CLEARS)
    w_row = piece * SLICE * WIDE
    out_column = row * B_OUT + piece * SLICE
    columns = entry + 4
    first = start
    last = end
    if SPLIT > 1:
        share = tl.cdiv(end - start, SPLIT)
        first = tl.minimum(start + part * share, end)
        last = tl.minimum(first + share, end)
    # In a gate-up product with separate masks, the part of the list before `border` is the gate's.
    border = tl.minimum(tl.maximum(middle, first), last) if GATE == "untied" else last
    total = tl.zeros((ROWS, COLS), dtype=tl.float32)
    total = _accumulate(
        total, x_descriptor, w_descriptor, scales, columns + (first - start), token, w_row, first, border - first,
        STRIDE, B_IN, K, HAS_SCALES, WEIGHTS_FIRST, STAGES, OPAQUE,
    )  # fmt: skip
    if SPLIT > 1:
        STEP: tl.constexpr = 2 if GATE == "untied" else 1
        slot = (place * SPLIT + part) * STEP
        keep(partials, slot, total, ROWS, COLS)
    elif GATE == "untied":
        held = round_now(activate(total, ACTIVATION, FAST), y_descriptor.dtype, OPAQUE)
    if GATE == "untied":
        total = tl.zeros((ROWS, COLS), dtype=tl.float32)
        total = _accumulate(
            total, x_descriptor, w_descriptor, scales, columns + (border - start), token, w_row, border, last - border,
            STRIDE, B_IN, K, HAS_SCALES, WEIGHTS_FIRST, STAGES, OPAQUE,
        )  # fmt: skip
    if SPLIT > 1:
        if GATE == "untied":
            keep(partials, slot + 1, total, ROWS, COLS)
        if is_last(counters + place, SPLIT):
            slot = place * SPLIT * STEP
            total = summed(partials, slot, STEP, SPLIT, ROWS, COLS)
            if GATE == "untied":
                out = activate(total, ACTIVATION, FAST) * summed(partials, slot + 1, STEP, SPLIT, ROWS, COLS)
            else:
                out = _finish(total, bias, out_column, SLICE, TILE, GATE, ACTIVATION, HAS_BIAS, WEIGHTS_FIRST, FAST)
            out = out.to(y_descriptor.dtype)
            y_descriptor.store([token, out_column], out.T if WEIGHTS_FIRST else out)
    else:
        if GATE == "untied":
            out = held.to(tl.float32) * total
        else:
            out = _finish(total, bias, out_column, SLICE, TILE, GATE, ACTIVATION, HAS_BIAS, WEIGHTS_FIRST, FAST)
        out = out.to(y_descriptor.dtype)
        y_descriptor.store([token, out_column], out.T if WEIGHTS_FIRST else out)
