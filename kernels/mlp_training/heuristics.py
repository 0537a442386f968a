"""With which tiles the training kernels run. Chosen from a sweep of 13 MLPs on an H100, see NOTES.md."""

from __future__ import annotations

from typing import NamedTuple

from blast_kernels.common.constants import BLOCK_SIDES, MULTIPROCESSORS

# What one multiprocessor of an H100 reaches in `sample` while the others are not all busy (when all are, 3.5e6), flop a
# µs, and what its memory delivers, bytes a µs.
FLOPS_OF_A_MULTIPROCESSOR = 6.0e6
BYTES = 2.5e6
# Entries of a list record (header and padding with it) from which lists count as long.
LONG_LISTS = 128
# Groups a multiprocessor from which there are many waves.
MANY_WAVES = 4


class TileConfig(NamedTuple):
    """How a product through lists is run.

    Attributes:
        tile: Tokens a program.
        slice: Columns of an output block that a program computes.
        k: Inner columns a step.
        stages: Depth of the software pipeline.
        warps: Warps a program.
        weights_first: Weights on the M side of the product (not for the hidden gradient).
        group: Token tiles of one record that run side by side.
    """

    tile: int
    slice: int
    k: int
    stages: int
    warps: int
    weights_first: bool = False
    group: int = 8


class SddmmConfig(NamedTuple):
    """How the gradient of the blocks is run.

    Attributes:
        k: Tokens a step.
        stages: Depth of the software pipeline.
        warps: Warps a program.
        parts: Parts of the tokens, summed afterwards; 0 leaves it to `parts_for`.
    """

    k: int
    stages: int
    warps: int
    parts: int = 0


def supports(*sides: int) -> bool:
    """Whether the kernels take blocks of these sides; the twins take all."""
    return all(side in BLOCK_SIDES for side in sides)


def tile_config(
    kernel: str, tokens: int, side: int, inner: int, gate: str, wide_float: bool, hopper: bool, width: int = 0
) -> TileConfig:  # fmt: skip
    """The config of `front`, `down`, `hidden` or `inputs`.

    Args:
        kernel: Which product.
        tokens: Rows of the activations.
        side: Columns of an output block.
        inner: Columns of an input block.
        gate: `none`, `untied` or `tied`.
        wide_float: Whether the operands are float32 (IEEE dots: no tensor cores).
        hopper: Whether the device has compute capability 9.
        width: Entries of a list record; 0 if not known.
    """
    if wide_float:
        return TileConfig(32, min(32, side), min(32, inner), 2, 4)
    if not hopper:
        # Without a tensor memory accelerator every address is held in registers: small tiles, many warps.
        return TileConfig(64, min(64, side), min(32, inner), 3, 8)
    # Fastest at 8192 tokens on an H100, each within 7 % of the best of its sweep in all 13 cases, `inputs` 4 %.
    k, tile = min(64, inner), 128 if tokens > 64 else 64
    half = min(64, side)
    if kernel == "hidden":
        # Five tiles of traffic at its end: tiles of 64 tokens leave room for more programs (1.4 times as fast as 128).
        return TileConfig(64, half, k, 3, 4, False, 16) if inner >= 128 else TileConfig(64, half, k, 2, 4, False, 4)
    if kernel == "front" and gate == "untied" and side >= 128:
        # Whole blocks of weights on the M side: up to 1.2 times as fast as half blocks beside 128 tokens.
        return TileConfig(64, 128, k, 3, 4, True, 16)
    if kernel == "front" and gate == "tied":
        return TileConfig(tile, half, k, 2, 4, True, 16)
    if kernel == "front":
        return TileConfig(tile, half, k, 3, 4, False, 4)
    if kernel == "inputs" and side >= 128 and tokens > 128 and width >= LONG_LISTS:
        # Long lists of 8B at 80 %: 1.1 times as fast as 128 tokens; on short ones up to 1.15 times slower.
        return TileConfig(256, side, k, 3, 8, False, 4)
    return TileConfig(tile, side, k, 3, 4, False, 8)


def group_members(side: int, front_blocks: int = 0, down_blocks: int = 0) -> tuple[int, int]:
    """Blocks of a group in the gradient of the blocks, front and down projection.

    Args:
        side: Of a block.
        front_blocks: Live blocks of gate and up in live rows; 0 if not known.
        down_blocks: Those of the down projection in live columns; 0 if not known.
    """
    return _members(side, front_blocks), _members(side, down_blocks)


def _members(side: int, blocks: int) -> int:
    # One block a program, three programs a multiprocessor: where that is just one wave, nothing else is within 10 %.
    one_wave = 2 * MULTIPROCESSORS < blocks <= 3 * MULTIPROCESSORS
    return 1 if side >= 128 and one_wave else 2


def sddmm_config(own: int, shared: int, members: int, wide_float: bool, hopper: bool, groups: int = 0) -> SddmmConfig:
    """The config of a sampled product with groups of `members` blocks.

    Args:
        own: Side of a block along what each member has of its own.
        shared: Its other side.
        members: Blocks of a group.
        wide_float: Whether the operands are float32.
        hopper: Whether the device has compute capability 9.
        groups: Group records; 0 if not known.
    """
    area = own * shared * members
    if wide_float:
        return SddmmConfig(16, 2, 8)
    if not hopper:
        return SddmmConfig(16, 3, 8)
    if area > 128 * 128:
        # Over many waves the shorter pipeline wins (8B at 80 %: 1.16 times), else the deeper one (1B: 1.1 times).
        return SddmmConfig(64, 3 if groups >= MANY_WAVES * MULTIPROCESSORS else 4, 8)
    # Two stages of 128 x 128 are 64 kB: three programs a multiprocessor, which is what groups of one are for.
    return SddmmConfig(64, 2 if area == 128 * 128 and members == 1 else 4, 4)


def parts_for(groups: int, members: int, slots: int, tokens: int, size: int, config: SddmmConfig) -> int:
    """In how many parts the tokens are cut, so that programs fill the device.

    Args:
        groups: Group records.
        members: Blocks of a group.
        slots: Blocks of the result.
        tokens: Tokens summed over.
        size: Elements of a block.
        config: Tiles.

    Returns:
        Parts, a power of two up to 16; chosen by a model of waves, starts and the traffic of the parts. 1 wherever
        the groups fill the device: parts then cost more (up to 1.3 times) than the last wave that they fill.
    """
    steps = -(-tokens // config.k)
    resident = 2 if config.warps <= 4 else 1
    if groups >= resident * MULTIPROCESSORS:
        return 1
    step_time = resident * 2 * size * members * config.k / FLOPS_OF_A_MULTIPROCESSOR

    def time(parts: int) -> float:
        waves = -(-groups * parts // (resident * MULTIPROCESSORS))
        own = waves * (-(-steps // parts) * step_time + 3.0)
        return own if parts == 1 else own + 3.0 + parts * (2.0 + slots * size * 8 / BYTES)

    return min((parts for parts in (1, 2, 4, 8, 16) if parts <= max(1, steps)), key=time)
