"""Many tokens: a token tile times a (slice of a) block row a program, operands through the tensor memory accelerator.

Bound by what the L2 cache delivers and by how many programs a multiprocessor holds to hide each other's start and end:
two or three small programs a multiprocessor beat one with a wider tile and a better ratio of arithmetic to bytes, and
beat a persistent loop over tiles (see NOTES.md). Needs compute capability 9. Twin: `reference.product`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from blast_kernels.epilogue import activate, hold, split_columns, split_rows


@triton.jit
def _locate(tile, records, token_tiles, GROUP):
    # GROUP token tiles of one record run side by side: they share its weights while those are in the L2 cache.
    span = GROUP * records
    group = tile // span
    inside = tile - group * span
    size = tl.minimum(GROUP, token_tiles - group * GROUP)
    record = inside // size
    return record, group * GROUP + inside - record * size


@triton.jit
def _accumulate(
    total,
    x_descriptor,
    w_descriptor,
    columns,
    token,
    w_row,
    blocks,
    STRIDE: tl.constexpr,
    B_IN: tl.constexpr,
    K: tl.constexpr,
    WEIGHTS_FIRST: tl.constexpr,
    STAGES: tl.constexpr,
):
    CHUNKS: tl.constexpr = B_IN // K
    column = tl.load(columns)
    for step in tl.range(0, blocks * CHUNKS, num_stages=STAGES):
        k = (step % CHUNKS) * K
        w = w_descriptor.load([w_row + (step // CHUNKS) * STRIDE, k])
        x = x_descriptor.load([token, column * B_IN + k])
        # A scalar load inside the loop is not pipelined: fetched one step ahead; the record is one entry longer.
        column = tl.load(columns + (step + 1) // CHUNKS)
        total = tl.dot(w, x.T, total) if WEIGHTS_FIRST else tl.dot(x, w.T, total)
    return total


@triton.jit(do_not_specialize=["count", "token_tiles", "GROUP"])
def tiles(
    x_descriptor,
    w_descriptor,
    y_descriptor,
    records,
    bias,
    count,
    token_tiles,
    GROUP,
    width,
    B_OUT: tl.constexpr,
    B_IN: tl.constexpr,
    SLICE: tl.constexpr,
    K: tl.constexpr,
    TILE: tl.constexpr,
    GATE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WEIGHTS_FIRST: tl.constexpr,
    STAGES: tl.constexpr,
    OPAQUE: tl.constexpr,
    LEADS: tl.constexpr,
    FOLLOWS: tl.constexpr,
):
    SLICES: tl.constexpr = B_OUT // SLICE
    WIDE: tl.constexpr = 2 if GATE == "tied" else 1
    STRIDE: tl.constexpr = WIDE * B_OUT
    ROWS: tl.constexpr = SLICE * WIDE if WEIGHTS_FIRST else TILE
    COLS: tl.constexpr = TILE if WEIGHTS_FIRST else SLICE * WIDE
    item = tl.program_id(0)
    rank, token = _locate(item // SLICES, count, token_tiles, GROUP)
    token *= TILE
    piece = item % SLICES
    record = records + rank * width
    row = tl.load(record)
    start = tl.load(record + 1)
    middle = tl.load(record + 2)
    end = tl.load(record + 3)
    if LEADS:
        tl.extra.cuda.gdc_launch_dependents()
    if FOLLOWS:
        tl.extra.cuda.gdc_wait()
    w_row = start * STRIDE + piece * SLICE * WIDE
    gates = middle - start
    total = tl.zeros((ROWS, COLS), dtype=tl.float32)
    total = _accumulate(
        total, x_descriptor, w_descriptor, record + 4, token, w_row, gates, STRIDE, B_IN, K, WEIGHTS_FIRST, STAGES
    )
    if GATE == "untied":
        held = hold(activate(total, ACTIVATION), y_descriptor.dtype, OPAQUE)
        total = tl.zeros((ROWS, COLS), dtype=tl.float32)
        total = _accumulate(
            total,
            x_descriptor,
            w_descriptor,
            record + 4 + gates,
            token,
            w_row + gates * STRIDE,
            end - middle,
            STRIDE,
            B_IN,
            K,
            WEIGHTS_FIRST,
            STAGES,
        )
        out = held.to(tl.float32) * total
    elif GATE == "tied":
        if WEIGHTS_FIRST:
            gate, up = split_rows(total, SLICE, TILE)
        else:
            gate, up = split_columns(total, TILE, SLICE)
        out = activate(gate, ACTIVATION) * up
    else:
        if HAS_BIAS:
            offset = tl.load(bias + row * B_OUT + piece * SLICE + tl.arange(0, SLICE)).to(tl.float32)
            total += offset[:, None] if WEIGHTS_FIRST else offset[None, :]
        out = activate(total, ACTIVATION)
    out = out.to(y_descriptor.dtype)
    if WEIGHTS_FIRST:
        out = out.T
    y_descriptor.store([token, row * B_OUT + piece * SLICE], out)
