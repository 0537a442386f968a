"""Forward of the front of an MLP in training: the pre-activations are kept for the backward pass.

Hidden blocks lie side by side without the dead ones: `pre [tokens, live · b]`, for a gated MLP the gate's and then the
up projection's `[tokens, 2 · live · b]`, and `hidden [tokens, live · b]`. The pre-activations are rounded before the
activation, so that the backward pass makes the very same hidden activations of them. Twin: `train_reference.front`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from blast_kernels.common.epilogue import activate, round_now
from blast_kernels.common.swizzle import swizzled_tile
from blast_kernels.mlp_training.gather_matmul import gather


@triton.jit
def _gather_both(
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
    """One shared mask: a tile of activations feeds both products, without packing the two weights together."""
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
    records,
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
    record = records + rank * width
    row = tl.load(record)
    first = tl.load(record + 1)
    blocks = tl.load(record + 2)
    at = row * B_HIDDEN + piece
    up_at = at + count * B_HIDDEN
    total = tl.zeros((ROWS, COLS), dtype=tl.float32)
    if GATE == "tied":
        up_total = tl.zeros((ROWS, COLS), dtype=tl.float32)
        total, up_total = _gather_both(
            total, up_total, x_descriptor, gate_descriptor, up_descriptor, record + 4, first, token, piece,
            B_HIDDEN, B_IN, K, WEIGHTS_FIRST, STAGES, PRECISION,
        )  # fmt: skip
        gate = total.to(pre_descriptor.dtype)
        pre_descriptor.store([token, at], gate.T if WEIGHTS_FIRST else gate)
        up = up_total.to(pre_descriptor.dtype)
        pre_descriptor.store([token, up_at], up.T if WEIGHTS_FIRST else up)
        out = activate(gate.to(tl.float32), ACTIVATION) * up.to(tl.float32)
    else:
        total = gather(
            total, x_descriptor, gate_descriptor, record + 4, first, token, piece,
            B_HIDDEN, B_IN, K, False, WEIGHTS_FIRST, STAGES, PRECISION,
        )  # fmt: skip
        if HAS_BIAS:
            offset = tl.load(bias + tl.load(record + 3) * B_HIDDEN + piece + tl.arange(0, SLICE)).to(tl.float32)
            total += offset[:, None] if WEIGHTS_FIRST else offset[None, :]
        gate = round_now(total, pre_descriptor.dtype, OPAQUE)
        pre_descriptor.store([token, at], gate.T if WEIGHTS_FIRST else gate)
        if GATE == "untied":
            total = tl.zeros((ROWS, COLS), dtype=tl.float32)
            total = gather(
                total, x_descriptor, up_descriptor, record + 4 + 2 * first, blocks - first, token, piece,
                B_HIDDEN, B_IN, K, False, WEIGHTS_FIRST, STAGES, PRECISION,
            )  # fmt: skip
            up = total.to(pre_descriptor.dtype)
            pre_descriptor.store([token, up_at], up.T if WEIGHTS_FIRST else up)
            out = activate(gate.to(tl.float32), ACTIVATION) * up.to(tl.float32)
        else:
            out = activate(gate.to(tl.float32), ACTIVATION)
    out = out.to(hidden_descriptor.dtype)
    hidden_descriptor.store([token, at], out.T if WEIGHTS_FIRST else out)
