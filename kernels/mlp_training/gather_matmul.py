"""Kernel of `y = Σ x[column] · block[position]` over the row list of each output block, blocks transposed or not.

It computes the down projection and the gradient of the input. Row lists are described in `index_lists`. A transposed
product reads each block in place as its transpose, so the gradient of the input needs no transposed copy of the
weights. Reference: `reference.gather_matmul`. Launched by `launch.gather_matmul`.
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
    TRANSPOSED: tl.constexpr,
    WEIGHTS_FIRST: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Adds the products of a row list to `total`: `[TILE, SLICE]`, or its transpose with WEIGHTS_FIRST."""
    CHUNKS: tl.constexpr = X_SIDE // K
    position = tl.load(entries)
    column = tl.load(entries + 1)
    for step in tl.range(0, blocks * CHUNKS, num_stages=STAGES):
        k = (step % CHUNKS) * K
        x = x_descriptor.load([token, column * X_SIDE + k])
        if TRANSPOSED:
            w = w_descriptor.load([position * B_OUT + k, piece])  # [K, SLICE]
        else:
            w = w_descriptor.load([position * B_OUT + piece, k]).T
        # Triton does not pipeline a scalar load inside the loop, so the next entry is loaded one step ahead. Row lists
        # have one entry more for that.
        ahead = entries + 2 * ((step + 1) // CHUNKS)
        position = tl.load(ahead)
        column = tl.load(ahead + 1)
        if WEIGHTS_FIRST:
            total = tl.dot(w.T, x.T, total, input_precision=PRECISION)
        else:
            total = tl.dot(x, w, total, input_precision=PRECISION)
    return total


@triton.jit(do_not_specialize=["count", "token_tiles", "GROUP"])
def gather_matmul_kernel(
    x_descriptor,
    first_descriptor,
    second_descriptor,
    y_descriptor,
    row_lists,
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
    TRANSPOSED: tl.constexpr,
    TWO_MATRICES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WEIGHTS_FIRST: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The down projection, or the gradient of the input through gate and up together (TWO_MATRICES)."""
    Y_SIDE: tl.constexpr = B_IN if TRANSPOSED else B_OUT
    X_SIDE: tl.constexpr = B_OUT if TRANSPOSED else B_IN
    SLICES: tl.constexpr = Y_SIDE // SLICE
    ROWS: tl.constexpr = SLICE if WEIGHTS_FIRST else TILE
    COLS: tl.constexpr = TILE if WEIGHTS_FIRST else SLICE
    item = tl.program_id(0)
    rank, token = swizzled_tile(item // SLICES, count, token_tiles, GROUP)
    token *= TILE
    piece = (item % SLICES) * SLICE
    row_list = row_lists + rank * width
    row = tl.load(row_list)
    first = tl.load(row_list + 1)
    blocks = tl.load(row_list + 2)
    total = tl.zeros((ROWS, COLS), dtype=tl.float32)
    total = gather(
        total, x_descriptor, first_descriptor, row_list + 4, first, token, piece,
        B_OUT, X_SIDE, K, TRANSPOSED, WEIGHTS_FIRST, STAGES, PRECISION,
    )  # fmt: skip
    if TWO_MATRICES:
        total = gather(
            total, x_descriptor, second_descriptor, row_list + 4 + 2 * first, blocks - first, token, piece,
            B_OUT, X_SIDE, K, TRANSPOSED, WEIGHTS_FIRST, STAGES, PRECISION,
        )  # fmt: skip
    if HAS_BIAS:
        offset = tl.load(bias + row * Y_SIDE + piece + tl.arange(0, SLICE)).to(tl.float32)
        total += offset[:, None] if WEIGHTS_FIRST else offset[None, :]
    out = total.to(y_descriptor.dtype)
    if WEIGHTS_FIRST:
        out = out.T
    y_descriptor.store([token, row * Y_SIDE + piece], out)
