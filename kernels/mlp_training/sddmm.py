"""Gradient of the live blocks alone: a sampled dense-dense product, several blocks a program, split over the tokens.

The blocks of a program share one operand tile (for gate and up a block column of the input, for down a block row of the
output's gradient). A *group record* is `[shared, live, own, slot, own, slot, …]`, int32: member `m` of the group is the
product of block column `own` of one operand with block column `shared` of the other, and block `slot` of the result;
`slot` is -1 where a group is not full, `live` is 0 where the result is known to be zero. The parts of the tokens go to
a float32 buffer and are summed in fixed order: a gradient is the same each time. Twin: `train_reference.sample`.
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
def sample(
    own_descriptor,
    shared_descriptor,
    records,
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
    record = records + (item - part * groups) * width
    shared_at = tl.load(record) * B_SHARED
    live = tl.load(record + 1)
    own_0 = tl.load(record + 2) * B_OWN
    total_0 = tl.zeros((ROWS, COLS), dtype=tl.float32)
    if MEMBERS >= 2:
        own_1 = tl.load(record + 4) * B_OWN
        total_1 = tl.zeros((ROWS, COLS), dtype=tl.float32)
    if MEMBERS >= 4:
        own_2 = tl.load(record + 6) * B_OWN
        own_3 = tl.load(record + 8) * B_OWN
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
    _store(total_0, tl.load(record + 3), part, out, second_out, slots, first_slots, ROWS, COLS, PARTS)
    if MEMBERS >= 2:
        _store(total_1, tl.load(record + 5), part, out, second_out, slots, first_slots, ROWS, COLS, PARTS)
    if MEMBERS >= 4:
        _store(total_2, tl.load(record + 7), part, out, second_out, slots, first_slots, ROWS, COLS, PARTS)
        _store(total_3, tl.load(record + 9), part, out, second_out, slots, first_slots, ROWS, COLS, PARTS)


@triton.jit(do_not_specialize=["parts"])
def sum_parts(parts_buffer, out, second_out, parts, elements, first_elements, WIDTH: tl.constexpr):
    """Adds the parts of a sampled product, in their order."""
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
