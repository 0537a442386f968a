"""Few tokens: stream the live weights through once, a slice of a block row a program.

Bound by memory: the weights are the M side of a small matrix product, tokens the N side (at least 16). Also the kernel
for float32 and for devices without the tensor memory accelerator. Weights may be float8 with a scale a block; long
block lists may be split over programs (see `split_k`). Reference: `reference.product`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from blast_kernels.common.epilogue import activate, split_rows
from blast_kernels.common.fp8_dequant import widen
from blast_kernels.mlp_inference.split_k import clear, is_last, keep, summed


@triton.jit(do_not_specialize=["tokens", "clear_count"])
def stream(
    x,
    values,
    scales,
    row_list,
    bias,
    y,
    partials,
    counters,
    to_clear,
    tokens,
    in_features,
    out_features,
    width,
    clear_count,
    B_OUT: tl.constexpr,
    B_IN: tl.constexpr,
    SLICE: tl.constexpr,
    TILE: tl.constexpr,
    BLOCKS: tl.constexpr,
    GATE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    SPLIT: tl.constexpr,
    CLEARS: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    OPAQUE: tl.constexpr,
    LEADS: tl.constexpr,
    WAITS: tl.constexpr,
):
    SLICES: tl.constexpr = B_OUT // SLICE
    K: tl.constexpr = BLOCKS * B_IN
    WIDE: tl.constexpr = 2 if GATE == "tied" else 1
    BLOCK_SIZE: tl.constexpr = WIDE * B_OUT * B_IN
    if WAITS == "first":
        tl.extra.cuda.gdc_wait()
    item = tl.program_id(0)
    part = tl.program_id(2)
    piece = item % SLICES
    entry = row_list + (item // SLICES) * width
    row = tl.load(entry)
    start = tl.load(entry + 1)
    middle = tl.load(entry + 2)
    end = tl.load(entry + 3)
    columns = entry + 4

    k = tl.arange(0, K)
    k_block = k // B_IN
    k_inside = k % B_IN
    token = tl.program_id(1) * TILE + tl.arange(0, TILE)
    present = token < tokens
    w_rows = piece * SLICE * WIDE + tl.arange(0, SLICE * WIDE)
    x_pointers = x + token[None, :].to(tl.int64) * in_features + k_inside[:, None]
    total = tl.zeros((SLICE * WIDE, TILE), dtype=tl.float32)
    if GATE == "untied":
        up = tl.zeros((SLICE, TILE), dtype=tl.float32)
    gates = middle - start
    count = end - start
    gate_steps = tl.cdiv(gates, BLOCKS)
    last = gate_steps + tl.cdiv(count - gates, BLOCKS)
    first = 0
    if SPLIT > 1:
        share = tl.cdiv(last, SPLIT)
        first = tl.minimum(part * share, last)
        last = tl.minimum(first + share, last)
    w_pointers = values + (start + first).to(tl.int64) * BLOCK_SIZE + w_rows[:, None] * B_IN + k_inside[None, :]

    if LEADS:
        tl.extra.cuda.gdc_launch_dependents()
    column = tl.load(columns + first)
    # The scale of a block is fetched as a vector of equal numbers: those are pipelined, single numbers are not.
    scale_pointers = scales + start + first + tl.zeros((K,), dtype=tl.int32)
    if WAITS == "late":
        # Everything above reads the row_list alone: it overlaps the kernel that is still writing `x`.
        tl.extra.cuda.gdc_wait()
    if CLEARS:
        clear(to_clear, clear_count, CLEARS)
    for step in tl.range(first, last, num_stages=STAGES):
        in_gate = step < gate_steps
        # The weights are asked for before the activations, whose address waits for a column.
        if BLOCKS == 1:
            w = tl.load(w_pointers, eviction_policy="evict_first")  # [WIDE * SLICE, K]
            tile = tl.load(x_pointers + column * B_IN, mask=present[None, :], other=0.0)  # [K, TILE]
            column = tl.load(columns + step + 1)
            w_pointers += BLOCK_SIZE
            if HAS_SCALES:
                w = widen(w, tl.load(scale_pointers)[None, :], tile.dtype, OPAQUE)
                scale_pointers += 1
        else:
            n = tl.where(in_gate, step * BLOCKS, gates + (step - gate_steps) * BLOCKS) + k_block
            live = n < tl.where(in_gate, gates, count)
            w_at = w_pointers + ((n - first).to(tl.int64) * BLOCK_SIZE)[None, :]
            w = tl.load(w_at, mask=live[None, :], other=0.0, eviction_policy="evict_first")
            shift = tl.load(columns + n, mask=live, other=0) * B_IN
            tile = tl.load(x_pointers + shift[:, None], mask=live[:, None] & present[None, :], other=0.0)
            if HAS_SCALES:
                factors = tl.load(scales + start + n, mask=live, other=0.0)
                w = widen(w, factors[None, :], tile.dtype, OPAQUE)
        if GATE == "untied":
            partial = tl.dot(w, tile, input_precision=PRECISION)
            total += tl.where(in_gate, partial, 0.0)
            up += tl.where(in_gate, 0.0, partial)
        else:
            total = tl.dot(w, tile, total, input_precision=PRECISION)

    out_column = row * B_OUT + piece * SLICE + tl.arange(0, SLICE)
    finishes = True
    if SPLIT > 1:
        STEP: tl.constexpr = 2 if GATE == "untied" else 1
        place = item * tl.num_programs(1) + tl.program_id(1)
        slot = (place * SPLIT + part) * STEP
        keep(partials, slot, total, SLICE * WIDE, TILE)
        if GATE == "untied":
            keep(partials, slot + 1, up, SLICE, TILE)
        finishes = is_last(counters + place, SPLIT)
        if finishes:
            total = summed(partials, place * SPLIT * STEP, STEP, SPLIT, SLICE * WIDE, TILE)
            if GATE == "untied":
                up = summed(partials, place * SPLIT * STEP + 1, STEP, SPLIT, SLICE, TILE)
    if finishes:
        FAST: tl.constexpr = OPAQUE and y.dtype.element_ty == tl.bfloat16
        if GATE == "tied":
            gate, up = split_rows(total, SLICE, TILE)
            out = activate(gate, ACTIVATION, FAST) * up
        elif GATE == "untied":
            out = activate(total, ACTIVATION, FAST) * up
        else:
            if HAS_BIAS:
                total += tl.load(bias + out_column).to(tl.float32)[:, None]
            out = activate(total, ACTIVATION, FAST)
        target = y + token[None, :].to(tl.int64) * out_features + out_column[:, None]
        tl.store(target, out.to(y.dtype.element_ty), mask=present[None, :])
