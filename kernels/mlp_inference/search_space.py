"""The kernel configs worth trying for a product. The suite `kernel_plans` times them, to build the tuned tables.

They are the configs that were best, or within a tenth of the best, somewhere in the sweeps of NOTES.md, and their
neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from blast_kernels.common.constants import MULTIPROCESSORS
from blast_kernels.mlp_inference.heuristics import (
    PERSISTENT_TOKENS,
    SHARED_MEMORY,
    KernelConfig,
    heuristic_config,
    shared_memory,
)

# Rows are split if there are fewer than two programs for each multiprocessor without it.
SPLITS = (2, 4)
SPLIT_TOKENS = 512
# float32 elements of an accumulator that four warps keep in registers.
ACCUMULATOR = 128 * 128
# Longest side of a box that the tensor memory accelerator loads.
BOX = 256


def fits(config: KernelConfig, b_out: int, b_in: int, gate: str, x_item: int = 2, w_item: int = 2) -> bool:
    """Whether a config can run a block, in the memory of a Hopper multiprocessor and, for `tiles`, on its tensor cores.

    Args:
        config: The config.
        b_out: Rows of a block.
        b_in: Columns of a block.
        gate: `none`, `untied` or `tied`.
        x_item: Bytes of an activation.
        w_item: Bytes of a weight.
    """
    if b_out % config.slice or shared_memory(config, gate, x_item, w_item) > SHARED_MEMORY:
        return False
    if config.kernel == "stream":
        return config.k % b_in == 0
    rows = config.slice * (2 if gate == "tied" else 1)
    if config.kernel == "persistent":
        return (
            b_in % config.k == 0
            and rows in (32, 64, 128)
            and config.tile == PERSISTENT_TOKENS
            and x_item == w_item == 2
        )
    m_side = rows if config.weights_first else config.tile
    # A warp group multiplies 64 rows; with fewer, wgmma is not used.
    fast = m_side >= 16 * config.warps and x_item < 4
    small = max(rows, config.tile) <= BOX and rows * config.tile <= ACCUMULATOR * config.warps // 4
    return b_in % config.k == 0 and fast and small


def candidates(
    tokens: int, row_count: int, b_out: int, b_in: int, gate: str, row_blocks: float, x_item: int = 2, w_item: int = 2
) -> list[KernelConfig]:
    """Configs to try for a product on a device with a tensor memory accelerator; the one of the rules first.

    Args:
        tokens: Rows of the activations.
        row_count: Block rows that are computed.
        b_out: Rows of a block.
        b_in: Columns of a block.
        gate: `none`, `untied` or `tied`.
        row_blocks: Mean length of a block row.
        x_item: Bytes of an activation; 4 means float32, which has no fast kernel.
        w_item: Bytes of a weight.

    Returns:
        Distinct configs that fit the block and the device.
    """
    plain = [heuristic_config(tokens, row_count, b_out, b_in, gate, x_item == 4, row_blocks=row_blocks)]
    if x_item == 4:
        plain += [
            KernelConfig("stream", tile, min(32, b_out), b_in, stages, 4) for tile in (16, 32) for stages in (2, 3)
        ]
    elif tokens <= 64:
        plain += [*_streams(tokens, b_out, b_in), *_few(tokens, b_out, b_in, gate)]
    elif tokens <= 256:
        plain += _some(tokens, b_out, b_in, gate)
        # From 129 tokens on, one persistent tile holds what takes two of 128.
        plain += _persistent(b_out, b_in, gate, (1,)) if tokens > 128 else ()
    else:
        plain += [*_many(b_out, b_in, gate), *(_some(tokens, b_out, b_in, gate) if tokens <= 512 else ())]
        plain += _streams(64, b_out, b_in) if max(b_out, b_in) < 32 else ()
    found = dict.fromkeys(config for config in plain if fits(config, b_out, b_in, gate, x_item, w_item))
    parts = [config._replace(split=split) for config in found for split in SPLITS if config.stages in (3, 4)]
    if tokens > SPLIT_TOKENS:
        parts = []
    elif tokens > 256:
        # The order of so few token tiles matters little.
        parts = [config for config in parts if config.group == 1]
    elif tokens <= 64:
        # The depth matters little there; the kernel and the slice matter.
        parts = [config for config in parts if config.stages == 4 or config.kernel == "tiles"]
    lacking = [config for config in parts if _lacks_programs(config, tokens, row_count, b_out, b_in, row_blocks)]
    found |= dict.fromkeys(config for config in lacking if fits(config, b_out, b_in, gate, x_item, w_item))
    return list(found)


def _lacks_programs(
    config: KernelConfig, tokens: int, row_count: int, b_out: int, b_in: int, row_blocks: float
) -> bool:
    """Whether there are too few programs without a split, and a list is long enough for it."""
    programs = row_count * (b_out // config.slice) * math.ceil(tokens / config.tile)
    # Whole blocks are dealt out, or groups of them where a step spans several.
    pieces = row_blocks / max(1, config.k // b_in)
    return programs * config.split <= 4 * MULTIPROCESSORS and programs < 2 * MULTIPROCESSORS and pieces >= config.split


def _streams(tokens: int, b_out: int, b_in: int) -> Iterator[KernelConfig]:
    tile = 16 if tokens <= 16 else 32 if tokens <= 32 else 64
    for slice_ in (32, 64, 128) if b_out > 32 else (b_out,):
        # One block a step is pipelined to its full depth, several small ones to half of it.
        for k in sorted({b_in, max(128, b_in)}):
            for stages in (3, 4, 6):
                yield KernelConfig("stream", tile, slice_, k, stages, 4)
    if b_out == 128:
        yield KernelConfig("stream", tile, 128, b_in, 3, 8)


def _few(tokens: int, b_out: int, b_in: int, gate: str) -> Iterator[KernelConfig]:
    half, (plain, deep) = min(64, b_out), _depths(b_in)
    first = half * (2 if gate == "tied" else 1) >= 64
    for tile in sorted({16 if tokens <= 16 else 32, 64 if tokens > 32 else 16, *(() if first else (64,))}):
        for k, stages in dict.fromkeys(((deep, 3), (deep, 4), (plain, 4), (plain, 6))):
            yield KernelConfig("tiles", tile, half, k, stages, 4, first)


def _some(tokens: int, b_out: int, b_in: int, gate: str) -> Iterator[KernelConfig]:
    half, (plain, deep) = min(64, b_out), _depths(b_in)
    first = half * (2 if gate == "tied" else 1) >= 64
    for tile in (64, 128):
        for k, stages in dict.fromkeys(((deep, 3), (deep, 4), (plain, 3), (plain, 4), (plain, 6))):
            yield KernelConfig("tiles", tile, half, k, stages, 4, first)
    yield KernelConfig("tiles", 32, half, deep, 4, 4, first)
    if b_out == 128 and gate != "tied":
        yield KernelConfig("tiles", 64, 128, plain, 4, 4)
        yield KernelConfig("tiles", 128, 128, plain, 3, 4)
        yield KernelConfig("tiles", 128, 128, plain, 4, 8)


def _many(b_out: int, b_in: int, gate: str) -> Iterator[KernelConfig]:
    half, (plain, deep) = min(64, b_out), _depths(b_in)
    groups = (4, 8, 16)
    for group in groups:
        for stages in (2, 3) if gate == "tied" or group == 16 else (3,):
            yield KernelConfig("tiles", 128, half, plain, stages, 4, False, group)
    yield from _persistent(b_out, b_in, gate, (2, 4, 8))
    # Down projections of long rows: all of the hidden activations of one tile of tokens are as much as the cache holds.
    for group in (1, 2, 4, 8):
        yield KernelConfig("tiles", 256, half, plain, 3, 8, False, group)
    yield KernelConfig("tiles", 128, half, plain, 4, 4, False, 8)
    yield KernelConfig("tiles", 128, half, deep, 3, 4, False, 8)
    for stages in (2, 3):
        yield KernelConfig("tiles", 64, half, plain, stages, 4, True, 16)
    if b_out < 128:
        return
    if gate == "tied":
        yield KernelConfig("tiles", 128, 128, plain, 3, 8, True, 4)
        return
    for group in groups:
        yield KernelConfig("tiles", 128, 128, plain, 3, 4, True, group)
    yield KernelConfig("tiles", 128, 128, plain, 2, 4, True, 16)
    yield KernelConfig("tiles", 128, 128, plain, 4, 4, True, 4)
    yield KernelConfig("tiles", 128, 128, plain, 3, 8, True, 4)
    yield KernelConfig("tiles", 64, 128, plain, 3, 4, True, 16)


def _persistent(b_out: int, b_in: int, gate: str, groups: tuple[int, ...]) -> Iterator[KernelConfig]:
    rows, (plain, _) = min(64, b_out) if gate == "tied" else b_out, _depths(b_in)
    for group in groups:
        for stages in (3, 4):
            yield KernelConfig("persistent", PERSISTENT_TOKENS, rows, plain, stages, 4, False, group)


def _depths(b_in: int) -> tuple[int, int]:
    """Columns of a step: 64 and 128, as far as the block has them."""
    return min(64, b_in), min(128, b_in)
