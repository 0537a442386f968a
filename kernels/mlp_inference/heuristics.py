"""Rules that give the kernel config of a product for its shape, from measurements (see NOTES.md).

They decide if the GPU's table has no near row (`tuned_configs`). They come from a sweep on an H100: blocks of 128,
sparsity .95 (and .8 for 8192 tokens), shapes of Llama 1B to 405B, 16, 128 and 2048 tokens. The rules for up to 16
tokens, and for gate-up products with thousands of tiles, come from all rows of the table. All other cases are inferred.
"""

from __future__ import annotations

from typing import NamedTuple

from blast_kernels.common.constants import MULTIPROCESSORS
from blast_kernels.common.gpu_limits import HOPPER

KERNELS = ("stream", "tiles", "persistent")
# From this many columns of a block row on, several programs share it, if there are few rows (decode).
LONG_ROW = 400
# From this many columns of a block row of 32 rows on, its product at many tokens is bound by re-reading activations.
WIDE_ROW = 1500
# From this many tiles for each multiprocessor on, gate-up at many tokens is faster with one program a multiprocessor.
MANY_TILES = 8
# Block rows of 32 rows with fewer columns are too short for that.
SHORT_ROW = 200
# Bytes of shared memory that one program may have on an H100 or H200.
SHARED_MEMORY = HOPPER.shared_memory
# The `persistent` kernel: tokens of a tile, columns of the result stored at once, bytes of memory beside its buffers.
PERSISTENT_TOKENS, PERSISTENT_STORE, PERSISTENT_STATE = 256, 64, 256
# Bytes of the barrier of a buffer that the tensor memory accelerator fills.
BARRIER = 8


class KernelConfig(NamedTuple):
    """How one product is run.

    Attributes:
        kernel: One of `KERNELS`.
        tile: Tokens a program (`persistent`: 256, half of them a warpgroup).
        slice: Rows of a block that a program computes.
        k: Columns of a block a step (`tiles`, `persistent`), or columns a step over several small blocks (`stream`).
        stages: Depth of the software pipeline.
        warps: Warps a program (`persistent`: of each of its two warpgroups).
        weights_first: Weights on the M side of the product (`tiles`).
        group: Token tiles that run side by side (`tiles`, `persistent`).
        registers: Cap on registers a thread, or None.
        split: Programs that share a row (split-K, see `split_k`).
    """

    kernel: str
    tile: int
    slice: int
    k: int
    stages: int
    warps: int
    weights_first: bool = True
    group: int = 1
    registers: int | None = None
    split: int = 1


def shared_memory(config: KernelConfig, gate: str, x_item: int = 2, w_item: int = 2) -> int:
    """Bytes of shared memory of a program on compute capability 9.

    Exact for `tiles` with weights as wide as activations. Elsewhere an upper bound: narrower weights use more barriers;
    `stream` uses one stage less if its product is too small for wgmma, and pipelines less deep if a step spans several
    blocks; for `persistent` it is a few bytes too much.

    Args:
        config: How the product is run.
        gate: One of `GATES`.
        x_item: Bytes of an activation.
        w_item: Bytes of a weight.
    """
    rows = config.slice * (2 if gate == "tied" else 1)
    step = config.k * (rows * w_item + config.tile * x_item)
    if config.kernel == "persistent":
        # With separate masks, the gate is kept in the buffers of the result.
        stored = config.slice if gate == "untied" else min(PERSISTENT_STORE, config.slice)
        return config.stages * step + config.tile * stored * x_item + PERSISTENT_STATE
    # Narrower weights are widened before the product, which takes more shared memory.
    widened = config.k * rows * x_item if w_item < x_item else 0
    # After the loop the same memory serves the result, or the float32 part of a split.
    after = config.tile * (config.slice * x_item if config.split == 1 else rows * 4)
    barriers = BARRIER * (1 if w_item == x_item else 2)
    return max(config.stages * (step + barriers) + widened, after)


def heuristic_config(
    tokens: int,
    row_count: int,
    b_out: int,
    b_in: int,
    gate: str,
    wide_float: bool = False,
    has_tma: bool = True,
    row_blocks: float = 8.0,
    float8: bool = False,
    has_gluon: bool = True,
) -> KernelConfig:
    """The config of a product by the rules, without a table and without an estimate (see `token_counts`).

    Args:
        tokens: Rows of the activations.
        row_count: Number of row lists: block rows that are computed.
        b_out: Rows of a block.
        b_in: Columns of a block.
        gate: One of `GATES`.
        wide_float: Whether the operands are float32 (IEEE dots: no tensor cores).
        has_tma: Whether the device has a tensor memory accelerator (compute capability 9).
        row_blocks: Mean number of blocks of a row: stored blocks divided by `row_count`.
        float8: Whether the weights are float8.
        has_gluon: Whether kernels written in Gluon can run; Triton's interpreter cannot run them.

    Returns:
        A config that fits the block.
    """
    if wide_float:
        return KernelConfig("stream", 16, min(32, b_out), b_in, 2, 4)
    half = min(64, b_out)
    # wgmma needs 64 rows on its M side. Use the weights if a slice has 64 rows, otherwise the tokens.
    weights_first = half * (2 if gate == "tied" else 1) >= 64
    few = tokens <= 16 or (tokens <= 32 and not weights_first)
    bytewise = float8 and min(b_out, b_in) >= 32
    if (few and not bytewise) or not has_tma or max(b_out, b_in) < 32:
        return _streamed(tokens, row_count, b_out, b_in, gate, row_blocks, has_tma)
    programs = row_count * (b_out // half)
    if bytewise and tokens <= 64:
        return _float8(tokens, row_count, b_out, b_in, gate, row_blocks)
    if tokens <= 32:
        # With a shared mask, packed weights have twice the rows. A step of 64 columns keeps the pipeline deep.
        return KernelConfig("tiles", 32, half, min(64 if gate == "tied" else 128, b_in), 4, 4)
    if tokens <= 256:
        return _middling(tokens, programs, half, b_in, gate, weights_first, row_blocks * b_in)
    k = min(64, b_in)
    many_tiles = row_count * -(-tokens // PERSISTENT_TOKENS) >= MANY_TILES * MULTIPROCESSORS
    if many_tiles and has_gluon and not float8 and fills_persistent(b_out, b_in, gate, row_blocks):
        held = gate == "untied" and b_out == 128
        rows = half if gate == "tied" else b_out
        group = persistent_group(b_out, row_count)
        return KernelConfig("persistent", PERSISTENT_TOKENS, rows, k, 3 if held else 4, 4, False, group)
    if b_out == 32 and row_blocks * b_in >= WIDE_ROW:
        # 405B: up to 2.5 times as fast as tiles of 128 tokens with eight side by side.
        return KernelConfig("tiles", 256, 32, k, 3, 8, False, 1)
    if gate == "tied":
        if row_blocks >= 16 and b_out == 128:
            return KernelConfig("tiles", 256, half, k, 3, 8, False, 4)
        stages, group = (3, 8) if row_blocks >= 5 else (2, 16)
        return KernelConfig("tiles", 128, half, k, stages, 4, False, group)
    if b_out < 128:
        return KernelConfig("tiles", 128, b_out, k, 3, 4, False, 8)
    # A tile of few blocks is mostly start and end. Smaller tiles, three a multiprocessor, hide these from each other.
    if (gate == "untied" and row_blocks < 5) or row_count <= 16:
        return KernelConfig("tiles", 128, 64, k, 3, 4, False, 16)
    if gate == "untied":
        return KernelConfig("tiles", 128, 128, k, 3, 4, True, 8)
    return KernelConfig("tiles", 128, 128, k, 4 if row_blocks >= 40 else 3, 4, True, 8 if row_count <= 32 else 4)


def persistent_group(b_out: int, row_count: int) -> int:
    """Token tiles side by side of a persistent gate-up product.

    Few rows mean a narrow model (1B): more tiles of its activations stay in the cache.
    """
    return 2 if b_out < 128 else 8 if row_count <= 64 else 4


def fills_persistent(b_out: int, b_in: int, gate: str, row_blocks: float) -> bool:
    """Whether a gate-up product has enough rows for one program a multiprocessor: 64, or twice 32."""
    if gate == "tied" and (b_out, b_in) == (32, 128):
        return row_blocks * b_in >= SHORT_ROW
    return gate != "none" and b_out >= 64


def _streamed(
    tokens: int, row_count: int, b_out: int, b_in: int, gate: str, row_blocks: float, has_tma: bool
) -> KernelConfig:
    tile = 16 if tokens <= 16 else 32 if tokens <= 32 else 64
    wide = gate == "none" and min(b_out, b_in) == 128 and row_count >= 100 and row_blocks >= 16
    if tile == 16 and has_tma and wide:
        # The tensor memory accelerator loads very wide activations faster (405B: 37 µs, not 46).
        return KernelConfig("tiles", 16, 64, 128, 3, 4)
    if tile == 16 and has_tma and gate == "none" and min(b_out, b_in) == 128 and row_count >= 50 and row_blocks >= 8:
        # 70B: the whole MLP takes 24.3 µs, not 25.5.
        return KernelConfig("tiles", 16, 64, 128, 6, 4)
    halves = row_count * max(1, b_out // 64)
    narrow = gate == "tied" or (gate == "untied" and halves < MULTIPROCESSORS)
    rows = min(32 if narrow else 64, b_out)
    if not has_tma or b_in < 32:
        return KernelConfig("stream", tile, rows, max(128, b_in), 4, 4)
    # If rows are few and long, four programs share each.
    least = min(32 if b_in < 128 else 64, b_out)
    long = row_blocks * b_in >= LONG_ROW * (1 if b_in < 128 else 2)
    if gate == "none" and long and row_count * b_out <= 32 * MULTIPROCESSORS:
        return KernelConfig("stream", tile, least, b_in, 4, 4, split=4)
    stages = 4 if b_in == 128 else 6
    if gate == "tied" and tile == 16:
        # Shorter pipelines: 70B 24.3 µs, not 25.6; 8B with blocks of 64 columns 10.7 µs, not 11.9.
        if b_in == 64 and row_count >= MULTIPROCESSORS:
            stages = 4
        elif b_in == 128 and row_blocks >= 3:
            stages = 3
    # A step takes several blocks of 32 columns, or one larger block.
    return KernelConfig("stream", tile, rows, 128 if b_in == 32 else b_in, stages, 4)


def _float8(tokens: int, row_count: int, b_out: int, b_in: int, gate: str, row_blocks: float) -> KernelConfig:
    """Slices of 32 rows: mma reads the bytes as stored, wgmma needs them rearranged (1B: 10 µs, not 20)."""
    if tokens > 32 and gate != "none" and b_out >= 64:
        return KernelConfig("tiles", 64, 64, min(128, b_in), 3, 4)
    tile = 16 if tokens <= 16 else 32 if tokens <= 32 else 64
    programs, k = row_count * (b_out // 32), max(128, b_in)
    # Many programs hide the rearranging, and larger ones load faster.
    if tile > 16:
        large = gate != "none" and programs >= 8 * MULTIPROCESSORS
        return KernelConfig("stream", tile, min(64 if large else 32, b_out), k, 3, 4)
    many = programs >= 6 * MULTIPROCESSORS
    if gate == "tied":
        # Gate and up are 64 rows together. 70B, s = .8: 92 µs with two stages, 123 with three.
        return KernelConfig("stream", tile, 32, k, 2 if many else 3, 4)
    if gate == "untied":
        deep = row_count >= 400 and row_blocks < 32
        return KernelConfig("stream", tile, min(64 if many else 32, b_out), k, 4 if deep else 3, 4)
    return KernelConfig("stream", tile, 32, k, 4 if programs <= MULTIPROCESSORS else 3, 4)


def _middling(
    tokens: int, programs: int, half: int, b_in: int, gate: str, weights_first: bool, columns: float
) -> KernelConfig:
    """33 to 256 tokens: if programs are few, smaller token tiles and longer steps."""
    programs *= -(-tokens // 128)
    deep, plain = min(128, b_in), min(64, b_in)
    enough = programs > 64 if gate == "none" else programs >= 2 * MULTIPROCESSORS
    tile = 128 if tokens > 64 and (enough or not weights_first) else 64
    if gate == "none":
        if not enough:
            # Long rows of small blocks take many short steps, so four programs share them.
            split = 4 if b_in == 32 and columns >= 2 * LONG_ROW else 1
            return KernelConfig("tiles", 64, half, deep, 4, 4, weights_first, split=split)
        return KernelConfig("tiles", tile, half, deep, 4, 4, weights_first)
    if gate == "tied":
        return KernelConfig("tiles", tile, half, plain, 3, 4, weights_first)
    if enough:
        return KernelConfig("tiles", tile, half, plain, 3 if programs >= 600 else 4, 4, weights_first)
    return KernelConfig("tiles", tile, half, deep, 3, 4, weights_first)
