"""Sums a product whose block lists are split over several programs: parts in memory, summed by the last to arrive.

Where there are fewer block rows than multiprocessors, or one row is much longer than the others, `split` programs
share a list. Each leaves its float32 tile in `partials` and counts itself in; whoever counts last sums all parts in
their order, so that the result does not depend on who that was, and does the epilogue. `counters` have to be zero
before: the gate-up kernel clears them (see `ops`), so that no launch is spent on it.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Counters that one program of the gate-up kernel clears.
CLEARED_BY_ONE = 128


@triton.jit
def clear(counters, count, COUNT: tl.constexpr):
    """Zeroes this program's share of the counters of the kernel that follows."""
    program = tl.program_id(0) + tl.num_programs(0) * (tl.program_id(1) + tl.num_programs(1) * tl.program_id(2))
    at = program * COUNT + tl.arange(0, COUNT)
    tl.store(counters + at, tl.zeros((COUNT,), dtype=tl.int32), mask=at < count)


@triton.jit
def keep(partials, slot, x, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Leaves a float32 tile `[ROWS, COLS]` in a slot."""
    at = tl.arange(0, ROWS)[:, None] * COLS + tl.arange(0, COLS)[None, :]
    tl.store(partials + slot.to(tl.int64) * (ROWS * COLS) + at, x)


@triton.jit
def is_last(counter, PARTS: tl.constexpr):
    """Counts this program in; whether all others were before it. What they kept can be read then."""
    # All threads have stored before one of them counts.
    tl.debug_barrier()
    return tl.atomic_add(counter, 1, sem="acq_rel") == PARTS - 1


@triton.jit
def summed(partials, slot, STEP: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """The sum of the tiles in the slots `slot, slot + STEP, …`, in that order."""
    at = tl.arange(0, ROWS)[:, None] * COLS + tl.arange(0, COLS)[None, :]
    total = tl.zeros((ROWS, COLS), dtype=tl.float32)
    for part in tl.static_range(PARTS):
        # Through L2: the first level cache of this multiprocessor does not see what others wrote.
        place = (slot + part * STEP).to(tl.int64) * (ROWS * COLS)
        total += tl.load(partials + place + at, cache_modifier=".cg")
    return total
