"""Products of training through lists of blocks, read in place: `y = Σ x[column] · block[position]`, turned or not.

A *list record* is `[row, first, all, hidden, position, column, position, column, …]`, int32 (see `train_records`): the
tile of block row `row` sums `all` products of block `position` of the values with block column `column` of `x`, the
first `first` of them with the first of two value tensors. Turned, a block is read as its transpose: the gradient of the
activations needs no copy of the weights. Twin: `train_reference.gather_product`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from blast_kernels.common.swizzle import swizzled_tile


@triton.jit
def gather(
    total,
    x_descriptor,
    w_descriptor,
    entries,
    blocks,
    token,
    piece,
    B_OUT: tl.constexpr,
    X_SIDE: tl.constexpr,
    K: tl.constexpr,
    TURNED: tl.constexpr,
    WEIGHTS_FIRST: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Adds the products of a list to `total`: `[TILE, SLICE]`, or its transpose with WEIGHTS_FIRST."""
    CHUNKS: tl.constexpr = X_SIDE // K
    position = tl.load(entries)
    column = tl.load(entries + 1)
    for step in tl.range(0, blocks * CHUNKS, num_stages=STAGES):
        k = (step % CHUNKS) * K
        x = x_descriptor.load([token, column * X_SIDE + k])
        if TURNED:
            w = w_descriptor.load([position * B_OUT + k, piece])  # [K, SLICE]
        else:
            w = w_descriptor.load([position * B_OUT + piece, k]).T
        # A scalar load inside the loop is not pipelined: fetched one step ahead; a record is one entry longer.
        ahead = entries + 2 * ((step + 1) // CHUNKS)
        position = tl.load(ahead)
        column = tl.load(ahead + 1)
        if WEIGHTS_FIRST:
            total = tl.dot(w.T, x.T, total, input_precision=PRECISION)
        else:
            total = tl.dot(x, w, total, input_precision=PRECISION)
    return total


@triton.jit(do_not_specialize=["count", "token_tiles", "GROUP"])
def gather_product(
    x_descriptor,
    first_descriptor,
    second_descriptor,
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
    TURNED: tl.constexpr,
    TWO: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WEIGHTS_FIRST: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The down projection, and the gradient of the input through gate and up together."""
    Y_SIDE: tl.constexpr = B_IN if TURNED else B_OUT
    X_SIDE: tl.constexpr = B_OUT if TURNED else B_IN
    SLICES: tl.constexpr = Y_SIDE // SLICE
    ROWS: tl.constexpr = SLICE if WEIGHTS_FIRST else TILE
    COLS: tl.constexpr = TILE if WEIGHTS_FIRST else SLICE
    item = tl.program_id(0)
    rank, token = swizzled_tile(item // SLICES, count, token_tiles, GROUP)
    token *= TILE
    piece = (item % SLICES) * SLICE
    record = records + rank * width
    row = tl.load(record)
    first = tl.load(record + 1)
    blocks = tl.load(record + 2)
    total = tl.zeros((ROWS, COLS), dtype=tl.float32)
    total = gather(
        total, x_descriptor, first_descriptor, record + 4, first, token, piece,
        B_OUT, X_SIDE, K, TURNED, WEIGHTS_FIRST, STAGES, PRECISION,
    )  # fmt: skip
    if TWO:
        total = gather(
            total, x_descriptor, second_descriptor, record + 4 + 2 * first, blocks - first, token, piece,
            B_OUT, X_SIDE, K, TURNED, WEIGHTS_FIRST, STAGES, PRECISION,
        )  # fmt: skip
    if HAS_BIAS:
        offset = tl.load(bias + row * Y_SIDE + piece + tl.arange(0, SLICE)).to(tl.float32)
        total += offset[:, None] if WEIGHTS_FIRST else offset[None, :]
    out = total.to(y_descriptor.dtype)
    if WEIGHTS_FIRST:
        out = out.T
    y_descriptor.store([token, row * Y_SIDE + piece], out)
