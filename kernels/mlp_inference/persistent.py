"""Many tokens, one program a multiprocessor: a warp that fetches, two warpgroups that multiply (written in Gluon).

A tile is 256 tokens times the rows of one entry (128 of weights: a block row, or 64 rows each of a gate and an up
projection that share a mask). Each warpgroup takes 128 of the tokens; both read the same weights from shared memory,
85 flop a byte of the L2 cache instead of 64. The fetching warp runs ahead over the borders of tiles, so that neither
the start of a tile nor its epilogue leaves the memory idle; and since the warpgroups do not wait for each other, one
multiplies while the other is in its epilogue. Needs compute capability 9. Reference: `reference.product`.
"""

from __future__ import annotations

import triton.experimental.gluon.language as gl
from blast_kernels.common.epilogue import GELU_A, GELU_B, GELU_C, GELU_END
from triton.experimental import gluon
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

HALF = gl.constexpr(128)
# Triton 3.9 has other names for the two copies of the tensor memory accelerator.
_copy_in = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
_copy_out = tma.async_store if hasattr(tma, "async_store") else tma.async_copy_shared_to_global


@gluon.jit
def _rounds(tiles):
    # How many tiles this program computes.
    programs = gl.num_programs(0)
    full = tiles // programs
    return full + gl.where(_nth(full) < tiles, 1, 0)


@gluon.jit
def _nth(n):
    # The n-th tile of this program. Row list come longest first: going back and forth over the programs gives none of
    # them the longest of every round.
    program = gl.program_id(0)
    programs = gl.num_programs(0)
    return n * programs + gl.where(n % 2 == 0, program, programs - 1 - program)


@gluon.jit
def _locate(tile, row_list, token_tiles, GROUP, SLICES: gl.constexpr):
    # As in `tiles`: GROUP token tiles of one entry side by side.
    piece = tile % SLICES
    item = tile // SLICES
    span = GROUP * row_list
    group = item // span
    inside = item - group * span
    size = gl.minimum(GROUP, token_tiles - group * GROUP)
    entry = inside // size
    return entry, (group * GROUP + inside - entry * size) * (2 * HALF), piece


@gluon.jit
def _header(entry):
    counts = gl.load(entry + 3)
    return gl.load(entry), counts & 0xFFFF, counts >> 16


@gluon.jit
def _list(entry):
    # Where the blocks of a row are and how many, and the first column.
    counts = gl.load(entry + 3)
    return gl.load(entry + 1), gl.load(entry + 2), counts & 0xFFFF, counts >> 16, gl.load(entry + 4)


@gluon.jit
def _fetch(
    x_descriptor, w_descriptor, up_descriptor, x_first, x_second, w_ring, full, empty, row_list, count, token_tiles,
    GROUP, width, SLICES: gl.constexpr, SLICE: gl.constexpr, B_OUT: gl.constexpr, B_IN: gl.constexpr, K: gl.constexpr,
    STAGES: gl.constexpr, GATE: gl.constexpr, HAS_PLACES: gl.constexpr,
):  # fmt: skip
    CHUNKS: gl.constexpr = B_IN // K
    step = 0
    total = count * token_tiles * SLICES
    rounds = _rounds(total)
    rank, token, piece = _locate(_nth(0), count, token_tiles, GROUP, SLICES)
    entry = row_list + rank * width
    start, up_start, gates, ups, column = _list(entry)
    for n in range(rounds):
        # The entry of the next tile is asked for while this one is fetched.
        ahead = gl.minimum(_nth(n + 1), total - 1)
        next_rank, next_token, next_piece = _locate(ahead, count, token_tiles, GROUP, SLICES)
        next_entry = row_list + next_rank * width
        next_start, next_up_start, next_gates, next_ups, next_column = _list(next_entry)
        # `blocks` also counts the steps below: Triton 3.6 drops a value carried by this loop that serves as the bound
        # of the inner one alone, and takes that of the first tile throughout.
        blocks = gates + ups
        for block in range(blocks):
            following = gl.load(entry + 5 + block)
            place = start + block
            if HAS_PLACES:
                place = start + (column >> 16)
                column = column & 0xFFFF
            if GATE == "untied":
                place = gl.where(block < gates, place, up_start - gates + block)
            w_row = place * B_OUT + piece * SLICE
            for chunk in gl.static_range(CHUNKS):
                at = step + block * CHUNKS + chunk
                stage = at % STAGES
                ready = full.index(stage)
                mbarrier.wait(empty.index(stage), ((at // STAGES) & 1) ^ 1)
                mbarrier.expect(ready, 2 * x_descriptor.block_type.nbytes + w_descriptor.block_type.nbytes)
                k = column * B_IN + chunk * K
                _copy_in(x_descriptor, [token, k], ready, x_first.index(stage))
                _copy_in(x_descriptor, [token + HALF, k], ready, x_second.index(stage))
                if GATE == "tied":
                    _copy_in(w_descriptor, [w_row // 8, 0, 0, chunk * K], ready, w_ring.index(stage))
                elif GATE == "untied":
                    if block < gates:
                        _copy_in(w_descriptor, [w_row, chunk * K], ready, w_ring.index(stage))
                    else:
                        _copy_in(up_descriptor, [w_row, chunk * K], ready, w_ring.index(stage))
                else:
                    _copy_in(w_descriptor, [w_row, chunk * K], ready, w_ring.index(stage))
            column = following
        step += blocks * CHUNKS
        entry = next_entry
        token = next_token
        piece = next_piece
        start = next_start
        gates = next_gates
        up_start = next_up_start
        ups = next_ups
        column = next_column


@gluon.jit
def _multiply(
    step, steps, x_ring, w_ring, full, empty, ROWS: gl.constexpr, K: gl.constexpr, STAGES: gl.constexpr,
    LAYOUT: gl.constexpr,
):  # fmt: skip
    # `steps` stages of the ring from `step` on: [HALF, K] · [ROWS, K]ᵀ each. A stage is given back one step late, when
    # the product that read it has ended.
    total = gl.zeros([HALF, ROWS], gl.float32, LAYOUT)
    for n in range(steps):
        stage = (step + n) % STAGES
        mbarrier.wait(full.index(stage), ((step + n) // STAGES) & 1)
        # Rows of gate and up, fetched eight by eight, are one matrix.
        w = w_ring.index(stage).reshape([ROWS, K])
        total = warpgroup_mma(x_ring.index(stage), w.permute((1, 0)), total, is_async=True)
        total = warpgroup_mma_wait(num_outstanding=1, deps=(total,))
        mbarrier.arrive(empty.index((step + n + STAGES - 1) % STAGES), count=1, pred=n > 0)
    total = warpgroup_mma_wait(num_outstanding=0, deps=(total,))
    mbarrier.arrive(empty.index((step + steps + STAGES - 1) % STAGES), count=1, pred=steps > 0)
    return total


@gluon.jit
def _store(y_descriptor, out, y_buffer, token, column):
    # What was in the buffer has to have left it.
    tma.store_wait(pendings=0)
    y_buffer.store(out)
    fence_async_shared()
    _copy_out(y_descriptor, [token, column], y_buffer)


@gluon.jit
def _halves(x, ROWS: gl.constexpr, COLS: gl.constexpr):
    return x.reshape([ROWS, 2, COLS]).permute([0, 2, 1]).split()


@gluon.jit
def _approximate_tanh(x):
    return gl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], gl.float32, True, 1)


@gluon.jit
def _activate(x, ACTIVATION: gl.constexpr, FAST: gl.constexpr):
    # As `epilogue.activate`; functions of Triton cannot be called from Gluon.
    if ACTIVATION == "silu":
        if FAST:
            half = 0.5 * x
            x = half * _approximate_tanh(half) + half
        else:
            x = x / (1.0 + gl.exp(-x))
    elif ACTIVATION == "gelu_tanh":
        u = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        if FAST:
            half = 0.5 * x
            x = half * _approximate_tanh(u) + half
        else:
            x = x / (1.0 + gl.exp(-2.0 * u))
    elif ACTIVATION == "gelu":
        half = 0.5 * x
        if FAST:
            square = gl.minimum(x * x, GELU_END)
            x = half * _approximate_tanh(x * (GELU_A + square * (GELU_B + square * GELU_C))) + half
        else:
            x = half * (1.0 + gl.erf(x * 0.7071067811865476))
    return x


@gluon.jit
def _split_columns(x, ROWS: gl.constexpr, COLS: gl.constexpr):
    gate, up = x.reshape([ROWS, COLS // 8, 2, 8]).permute([0, 1, 3, 2]).split()
    return gate.reshape([ROWS, COLS]), up.reshape([ROWS, COLS])


@gluon.jit
def _consume(
    y_descriptor, x_ring, w_ring, y_buffer, full, empty, row_list, bias, count, token_tiles, GROUP, width,
    WHICH: gl.constexpr, SLICES: gl.constexpr, SLICE: gl.constexpr, ROWS: gl.constexpr, B_OUT: gl.constexpr,
    CHUNKS: gl.constexpr, K: gl.constexpr, STAGES: gl.constexpr, GATE: gl.constexpr, UP_FIRST: gl.constexpr,
    ACTIVATION: gl.constexpr, HAS_BIAS: gl.constexpr,
):  # fmt: skip
    FAST: gl.constexpr = y_descriptor.dtype == gl.bfloat16
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, ROWS, 16])
    step = 0
    total = count * token_tiles * SLICES
    rounds = _rounds(total)
    rank, token, piece = _locate(_nth(0), count, token_tiles, GROUP, SLICES)
    row, gates, ups = _header(row_list + rank * width)
    for n in range(rounds):
        ahead = gl.minimum(_nth(n + 1), total - 1)
        rank, next_token, next_piece = _locate(ahead, count, token_tiles, GROUP, SLICES)
        next_row, next_gates, next_ups = _header(row_list + rank * width)
        out_column = row * B_OUT + piece * SLICE
        if GATE == "untied":
            gate_steps = gates * CHUNKS
            up_steps = ups * CHUNKS
            gate = _multiply(step, gate_steps, x_ring, w_ring, full, empty, ROWS, K, STAGES, LAYOUT)
            # Held in the buffer of the result: in registers it would not fit beside the accumulator.
            tma.store_wait(pendings=0)
            y_buffer.store(_activate(gate, ACTIVATION, FAST).to(y_descriptor.dtype))
            up = _multiply(step + gate_steps, up_steps, x_ring, w_ring, full, empty, ROWS, K, STAGES, LAYOUT)
            out = y_buffer.load(LAYOUT).to(gl.float32) * up
            step += gate_steps + up_steps
        else:
            steps = gates * CHUNKS
            sums = _multiply(step, steps, x_ring, w_ring, full, empty, ROWS, K, STAGES, LAYOUT)
            step += steps
            if GATE == "tied":
                first, second = _split_columns(sums, HALF, SLICE)
                if UP_FIRST:
                    out = _activate(second, ACTIVATION, FAST) * first
                else:
                    out = _activate(first, ACTIVATION, FAST) * second
            else:
                if HAS_BIAS:
                    at = out_column + gl.arange(0, SLICE, layout=gl.SliceLayout(0, LAYOUT))
                    sums += gl.load(bias + at).to(gl.float32)[None, :]
                out = _activate(sums, ACTIVATION, FAST)
        out = out.to(y_descriptor.dtype)
        STORED: gl.constexpr = y_descriptor.block_type.shape[1]
        if SLICE > STORED:
            # In two halves: a wider buffer would take room from the ring.
            left, right = _halves(out, HALF, STORED)
            _store(y_descriptor, left, y_buffer, token + WHICH * HALF, out_column)
            _store(y_descriptor, right, y_buffer, token + WHICH * HALF, out_column + STORED)
        else:
            _store(y_descriptor, out, y_buffer, token + WHICH * HALF, out_column)
        token = next_token
        piece = next_piece
        row = next_row
        gates = next_gates
        ups = next_ups
    tma.store_wait(pendings=0)


@gluon.jit(do_not_specialize=["count", "token_tiles", "GROUP"])
def persistent(
    x_descriptor,
    w_descriptor,
    up_descriptor,
    y_descriptor,
    row_list,
    bias,
    count,
    token_tiles,
    GROUP,
    width,
    B_OUT: gl.constexpr,
    B_IN: gl.constexpr,
    SLICE: gl.constexpr,
    K: gl.constexpr,
    GATE: gl.constexpr,
    ACTIVATION: gl.constexpr,
    HAS_BIAS: gl.constexpr,
    HAS_PLACES: gl.constexpr,
    UP_FIRST: gl.constexpr,
    STAGES: gl.constexpr,
):
    SLICES: gl.constexpr = B_OUT // SLICE
    WIDE: gl.constexpr = 2 if GATE == "tied" else 1
    ROWS: gl.constexpr = SLICE * WIDE
    x_first = gl.allocate_shared_memory(x_descriptor.dtype, [STAGES, HALF, K], x_descriptor.layout)
    x_second = gl.allocate_shared_memory(x_descriptor.dtype, [STAGES, HALF, K], x_descriptor.layout)
    BOX: gl.constexpr = [STAGES, ROWS, K] if GATE != "tied" else [STAGES, SLICE // 8, WIDE, 8, K]
    w_ring = gl.allocate_shared_memory(w_descriptor.dtype, BOX, w_descriptor.layout)
    y_first = gl.allocate_shared_memory(y_descriptor.dtype, y_descriptor.block_type.shape, y_descriptor.layout)
    y_second = gl.allocate_shared_memory(y_descriptor.dtype, y_descriptor.block_type.shape, y_descriptor.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=2)
    gl.warp_specialize(
        [
            (
                _consume,
                (
                    y_descriptor, x_first, w_ring, y_first, full, empty, row_list, bias, count, token_tiles, GROUP,
                    width, 0, SLICES, SLICE, ROWS, B_OUT, B_IN // K, K, STAGES, GATE, UP_FIRST,
                    ACTIVATION, HAS_BIAS,
                ),
            ),
            (
                _consume,
                (
                    y_descriptor, x_second, w_ring, y_second, full, empty, row_list, bias, count, token_tiles, GROUP,
                    width, 1, SLICES, SLICE, ROWS, B_OUT, B_IN // K, K, STAGES, GATE, UP_FIRST,
                    ACTIVATION, HAS_BIAS,
                ),
            ),
            (
                _fetch,
                (
                    x_descriptor, w_descriptor, up_descriptor, x_first, x_second, w_ring, full, empty, row_list, count,
                    token_tiles, GROUP, width, SLICES, SLICE, B_OUT, B_IN, K, STAGES, GATE, HAS_PLACES,
                ),
            ),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip
