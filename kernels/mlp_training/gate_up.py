"""Kernel of the gate-up product in training: pre-activations, which the backward pass needs, and hidden activations.

Without a gate it computes the up projection alone. Dead hidden blocks are left out: `pre` is `[tokens, live · b]`, with
a gate `[tokens, 2 · live · b]` (gate, then up); `hidden` is `[tokens, live · b]`. The kernel rounds the pre-activations
before the activation, so the backward pass recomputes exactly the same hidden activations from them.
Reference: `reference.gate_up`. Launched by `launch.gate_up`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from blast_kernels.common.epilogue import activate, round_now
from blast_kernels.common.swizzle import swizzled_tile
from blast_kernels.mlp_training.gather_matmul import gather


@triton.jit
def _gather_gate_up(
    gate,
    up,
    x_descriptor,
    gate_descriptor,
    up_descriptor,
    entries,
    blocks,
    token,
    piece,
    B_HIDDEN: tl.constexpr,
    B_IN: tl.constexpr,
    K: tl.constexpr,
    WEIGHTS_FIRST: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gate and up with one shared mask: each tile of activations feeds both products. The weights need no packing."""
    CHUNKS: tl.constexpr = B_IN // K
    position = tl.load(entries)
    column = tl.load(entries + 1)
    for step in tl.range(0, blocks * CHUNKS, num_stages=STAGES):
        k = (step % CHUNKS) * K
        x = x_descriptor.load([token, column * B_IN + k])
        g = gate_descriptor.load([position * B_HIDDEN + piece, k])
        u = up_descriptor.load([position * B_HIDDEN + piece, k])
        ahead = entries + 2 * ((step + 1) // CHUNKS)
        position = tl.load(ahead)
        column = tl.load(ahead + 1)
        if WEIGHTS_FIRST:
            gate = tl.dot(g, x.T, gate, input_precision=PRECISION)
            up = tl.dot(u, x.T, up, input_precision=PRECISION)
        else:
            gate = tl.dot(x, g.T, gate, input_precision=PRECISION)
            up = tl.dot(x, u.T, up, input_precision=PRECISION)
    return gate, up


@triton.jit(do_not_specialize=["count", "token_tiles", "GROUP"])
def gate_up_kernel(
    x_descriptor,
    gate_descriptor,
    up_descriptor,
    pre_descriptor,
    hidden_descriptor,
    row_lists,
    bias,
    count,
    token_tiles,
    GROUP,
    width,
    B_HIDDEN: tl.constexpr,
    B_IN: tl.constexpr,
    SLICE: tl.constexpr,
    K: tl.constexpr,
    TILE: tl.constexpr,
    GATE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WEIGHTS_FIRST: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    OPAQUE: tl.constexpr,
):
    SLICES: tl.constexpr = B_HIDDEN // SLICE
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
    at = row * B_HIDDEN + piece
    up_at = at + count * B_HIDDEN
    total = tl.zeros((ROWS, COLS), dtype=tl.float32)
    if GATE == "tied":
        up_total = tl.zeros((ROWS, COLS), dtype=tl.float32)
        total, up_total = _gather_gate_up(
            total, up_total, x_descriptor, gate_descriptor, up_descriptor, row_list + 4, first, token, piece,
            B_HIDDEN, B_IN, K, WEIGHTS_FIRST, STAGES, PRECISION,
        )  # fmt: skip
        gate = total.to(pre_descriptor.dtype)
        pre_descriptor.store([token, at], gate.T if WEIGHTS_FIRST else gate)
        up = up_total.to(pre_descriptor.dtype)
        pre_descriptor.store([token, up_at], up.T if WEIGHTS_FIRST else up)
        out = activate(gate.to(tl.float32), ACTIVATION) * up.to(tl.float32)
    else:
        total = gather(
            total, x_descriptor, gate_descriptor, row_list + 4, first, token, piece,
            B_HIDDEN, B_IN, K, False, WEIGHTS_FIRST, STAGES, PRECISION,
        )  # fmt: skip
        if HAS_BIAS:
            offset = tl.load(bias + tl.load(row_list + 3) * B_HIDDEN + piece + tl.arange(0, SLICE)).to(tl.float32)
            total += offset[:, None] if WEIGHTS_FIRST else offset[None, :]
        gate = round_now(total, pre_descriptor.dtype, OPAQUE)
        pre_descriptor.store([token, at], gate.T if WEIGHTS_FIRST else gate)
        if GATE == "untied":
            total = tl.zeros((ROWS, COLS), dtype=tl.float32)
            total = gather(
                total, x_descriptor, up_descriptor, row_list + 4 + 2 * first, blocks - first, token, piece,
                B_HIDDEN, B_IN, K, False, WEIGHTS_FIRST, STAGES, PRECISION,
            )  # fmt: skip
            up = total.to(pre_descriptor.dtype)
            pre_descriptor.store([token, up_at], up.T if WEIGHTS_FIRST else up)
            out = activate(gate.to(tl.float32), ACTIVATION) * up.to(tl.float32)
        else:
            out = activate(gate.to(tl.float32), ACTIVATION)
    out = out.to(hidden_descriptor.dtype)
    hidden_descriptor.store([token, at], out.T if WEIGHTS_FIRST else out)
