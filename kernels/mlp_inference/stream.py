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


@triton.jit
def header(entry):
    """Row, first block, first block of up, how many blocks, how many of up: two reads for all of it."""
    # Each number by itself, the compiler fetches the row late, and then waits for it.
    pairs = entry.to(tl.pointer_type(tl.int64))
    first = tl.load(pairs)
    second = tl.load(pairs + 1)
    counts = (second >> 32).to(tl.int32)
    return first.to(tl.int32), (first >> 32).to(tl.int32), second.to(tl.int32), counts & 0xFFFF, counts >> 16


@triton.jit
def prefetch(first, BYTES: tl.constexpr):
    """Asks the L2 cache for memory from `first` on, a line of 128 bytes a thread."""
    lines = first.to(tl.pointer_type(tl.int8)) + tl.arange(0, BYTES // 128) * 128
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [lines], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit(do_not_specialize=["tokens", "clear_count"])
def stream(
    x,
    values,
    up_values,
    scales,
    up_scales,
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
    HAS_PLACES: tl.constexpr,
    SPLIT: tl.constexpr,
    CLEARS: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    PREFETCH: tl.constexpr,
    OPAQUE: tl.constexpr,
    LEADS: tl.constexpr,
    WAITS: tl.constexpr,
):
    SLICES: tl.constexpr = B_OUT // SLICE
    K: tl.constexpr = BLOCKS * B_IN
    WIDE: tl.constexpr = 2 if GATE == "tied" else 1
    BLOCK_SIZE: tl.constexpr = B_OUT * B_IN
    if WAITS == "first":
        tl.extra.cuda.gdc_wait()
    item = tl.program_id(0)
    part = tl.program_id(2)
    piece = item % SLICES
    entry = row_list + (item // SLICES) * width
    row, start, up_start, gates, ups = header(entry)
    columns = entry + 4

    k = tl.arange(0, K)
    k_block = k // B_IN
    k_inside = k % B_IN
    token = tl.program_id(1) * TILE + tl.arange(0, TILE)
    present = token < tokens
    w_rows = tl.arange(0, SLICE * WIDE)
    if GATE == "tied":
        # Eight rows of the gate, eight of the up projection: gate and up of an output element meet in one thread, so
        # that `split_rows` moves no data.
        from_up = (w_rows // 8) % 2 == 1
        w_rows = (w_rows // 16) * 8 + w_rows % 8
    w_offsets = (piece * SLICE + w_rows)[:, None] * B_IN + k_inside[None, :]
    x_pointers = x + token[None, :].to(tl.int64) * in_features + k_inside[:, None]
    total = tl.zeros((SLICE * WIDE, TILE), dtype=tl.float32)
    if GATE == "untied":
        up = tl.zeros((SLICE, TILE), dtype=tl.float32)
    count = gates + ups
    gate_steps = tl.cdiv(gates, BLOCKS)
    last = gate_steps + tl.cdiv(ups, BLOCKS)
    first = 0
    if SPLIT > 1:
        share = tl.cdiv(last, SPLIT)
        first = tl.minimum(part * share, last)
        last = tl.minimum(first + share, last)
    if GATE == "tied":
        w_pointers = tl.where(from_up[:, None], up_values + w_offsets, values + w_offsets)
    else:
        w_pointers = values + w_offsets
    if BLOCKS == 1 and GATE != "untied" and not HAS_PLACES:
        w_pointers += (start + first).to(tl.int64) * BLOCK_SIZE

    if LEADS:
        tl.extra.cuda.gdc_launch_dependents()
    column = tl.load(columns + first)
    # The scale of a block is fetched as a vector of equal numbers: those are pipelined, single numbers are not.
    equal = tl.zeros((K,), dtype=tl.int32)
    scale_pointers = scales + start + first + equal
    if PREFETCH and OPAQUE and WAITS == "late" and last > first:
        ahead = start + (column >> 16) if HAS_PLACES else start + first
        BYTES: tl.constexpr = SLICE * B_IN * values.dtype.element_ty.primitive_bitwidth // 8
        prefetch(values + ahead.to(tl.int64) * BLOCK_SIZE + piece * SLICE * B_IN, BYTES)
        if PREFETCH > 1 and last > first + 1:
            ahead = start + (tl.load(columns + first + 1) >> 16) if HAS_PLACES else start + first + 1
            prefetch(values + ahead.to(tl.int64) * BLOCK_SIZE + piece * SLICE * B_IN, BYTES)
    if WAITS == "late":
        # Everything above reads the row_list alone: it overlaps the kernel that is still writing `x`.
        tl.extra.cuda.gdc_wait()
    if CLEARS:
        clear(to_clear, clear_count, CLEARS)
    for step in tl.range(first, last, num_stages=STAGES):
        in_gate = step < gate_steps
        source = values
        scale_source = scales
        origin = start
        if GATE == "untied":
            source = tl.where(in_gate, values, up_values)
            scale_source = tl.where(in_gate, scales, up_scales)
            origin = tl.where(in_gate, start, up_start - gates)
        # The weights are asked for before the activations, whose address waits for a column.
        if BLOCKS == 1:
            place = origin + step
            if HAS_PLACES:
                place = start + (column >> 16)
                column = column & 0xFFFF
            if GATE == "untied" or HAS_PLACES:
                w_at = source + w_offsets + place.to(tl.int64) * BLOCK_SIZE
            else:
                w_at = w_pointers
                w_pointers += BLOCK_SIZE
            w = tl.load(w_at, eviction_policy="evict_first")  # [WIDE * SLICE, K]
            tile = tl.load(x_pointers + column * B_IN, mask=present[None, :], other=0.0)  # [K, TILE]
            column = tl.load(columns + step + 1)
            if HAS_SCALES:
                if GATE == "untied" or HAS_PLACES:
                    factors = tl.load(scale_source + place + equal)
                else:
                    factors = tl.load(scale_pointers)
                    scale_pointers += 1
                w = widen(w, factors[None, :], tile.dtype, OPAQUE)
        else:
            n = tl.where(in_gate, step * BLOCKS, gates + (step - gate_steps) * BLOCKS) + k_block
            live = n < tl.where(in_gate, gates, count)
            places = origin + n
            if HAS_PLACES:
                entries = tl.load(columns + n, mask=live, other=0)
                places = start + (entries >> 16)
            shift = (places.to(tl.int64) * BLOCK_SIZE)[None, :]
            w_at = w_pointers + shift if GATE == "tied" else source + w_offsets + shift
            w = tl.load(w_at, mask=live[None, :], other=0.0, eviction_policy="evict_first")
            if not HAS_PLACES:
                entries = tl.load(columns + n, mask=live, other=0)
            shift = (entries & 0xFFFF) * B_IN
            tile = tl.load(x_pointers + shift[:, None], mask=live[:, None] & present[None, :], other=0.0)
            if HAS_SCALES:
                factors = tl.load(scale_source + places, mask=live, other=0.0)
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
