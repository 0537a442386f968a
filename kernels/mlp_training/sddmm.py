"""Kernel of the gradient of the live blocks: an SDDMM (sampled dense-dense matrix product), split over the tokens.

The blocks of a group share one operand tile. For gate and up this is a block column of the input, for the down
projection a block row of the gradient of the output. Block groups are described in `index_lists`.
Split-K: each part of the tokens is summed in float32 into a buffer, and a second kernel adds the parts in a fixed
order, so a gradient is the same each time. Reference: `reference.sddmm`. Launched by `launch.sddmm`.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _store(
    total, slot, part, out, second_out, slots, first_slots,
    ROWS: tl.constexpr, COLS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    SIZE: tl.constexpr = ROWS * COLS
    inside = tl.arange(0, ROWS)[:, None] * COLS + tl.arange(0, COLS)[None, :]
    if PARTS:
        if slot >= 0:
            tl.store(out + (part.to(tl.int64) * slots + slot) * SIZE + inside, total)
    else:
        value = total.to(out.dtype.element_ty)
        if slot >= first_slots:
            tl.store(second_out + (slot - first_slots).to(tl.int64) * SIZE + inside, value)
        elif slot >= 0:
            tl.store(out + slot.to(tl.int64) * SIZE + inside, value)


@triton.jit
def _multiply(own, shared, total, OWN_IS_OUT: tl.constexpr, PRECISION: tl.constexpr):
    if OWN_IS_OUT:
        total = tl.dot(own.T, shared, total, input_precision=PRECISION)
    else:
        total = tl.dot(shared.T, own, total, input_precision=PRECISION)
    return total


@triton.jit(do_not_specialize=["groups", "steps", "steps_a_part", "slots", "first_slots"])
def sddmm_kernel(
    own_descriptor,
    shared_descriptor,
    block_groups,
    out,
    second_out,
    groups,
    steps,
    steps_a_part,
    slots,
    first_slots,
    width,
    B_OWN: tl.constexpr,
    B_SHARED: tl.constexpr,
    K: tl.constexpr,
    MEMBERS: tl.constexpr,
    OWN_IS_OUT: tl.constexpr,
    PARTS: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    ROWS: tl.constexpr = B_OWN if OWN_IS_OUT else B_SHARED
    COLS: tl.constexpr = B_SHARED if OWN_IS_OUT else B_OWN
    item = tl.program_id(0)
    part = item // groups
    block_group = block_groups + (item - part * groups) * width
    shared_at = tl.load(block_group) * B_SHARED
    live = tl.load(block_group + 1)
    own_0 = tl.load(block_group + 2) * B_OWN
    total_0 = tl.zeros((ROWS, COLS), dtype=tl.float32)
    if MEMBERS >= 2:
        own_1 = tl.load(block_group + 4) * B_OWN
        total_1 = tl.zeros((ROWS, COLS), dtype=tl.float32)
    if MEMBERS >= 4:
        own_2 = tl.load(block_group + 6) * B_OWN
        own_3 = tl.load(block_group + 8) * B_OWN
        total_2 = tl.zeros((ROWS, COLS), dtype=tl.float32)
        total_3 = tl.zeros((ROWS, COLS), dtype=tl.float32)
    begin = part * steps_a_part
    end = tl.minimum(begin + steps_a_part, steps)
    end = tl.where(live > 0, end, begin)
    for step in tl.range(begin, end, num_stages=STAGES):
        token = step * K
        shared = shared_descriptor.load([token, shared_at])
        total_0 = _multiply(own_descriptor.load([token, own_0]), shared, total_0, OWN_IS_OUT, PRECISION)
        if MEMBERS >= 2:
            total_1 = _multiply(own_descriptor.load([token, own_1]), shared, total_1, OWN_IS_OUT, PRECISION)
        if MEMBERS >= 4:
            total_2 = _multiply(own_descriptor.load([token, own_2]), shared, total_2, OWN_IS_OUT, PRECISION)
            total_3 = _multiply(own_descriptor.load([token, own_3]), shared, total_3, OWN_IS_OUT, PRECISION)
    _store(total_0, tl.load(block_group + 3), part, out, second_out, slots, first_slots, ROWS, COLS, PARTS)
    if MEMBERS >= 2:
        _store(total_1, tl.load(block_group + 5), part, out, second_out, slots, first_slots, ROWS, COLS, PARTS)
    if MEMBERS >= 4:
        _store(total_2, tl.load(block_group + 7), part, out, second_out, slots, first_slots, ROWS, COLS, PARTS)
        _store(total_3, tl.load(block_group + 9), part, out, second_out, slots, first_slots, ROWS, COLS, PARTS)


@triton.jit(do_not_specialize=["parts"])
def sum_parts_kernel(parts_buffer, out, second_out, parts, elements, first_elements, WIDTH: tl.constexpr):
    """Adds the parts of an SDDMM in a fixed order, and rounds the sums to the dtype of the gradients."""
    at = tl.program_id(0).to(tl.int64) * WIDTH + tl.arange(0, WIDTH)
    inside = at < elements
    total = tl.zeros((WIDTH,), dtype=tl.float32)
    source = parts_buffer + at
    for _ in tl.range(0, parts):
        total += tl.load(source, mask=inside, other=0.0)
        source += elements
    value = total.to(out.dtype.element_ty)
    in_first = at < first_elements
    tl.store(out + at, value, mask=inside & in_first)
    tl.store(second_out + (at - first_elements), value, mask=inside & (at >= first_elements))
