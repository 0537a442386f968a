"""Kernel configs of the training kernels: tile sizes, warps and splits by shape.

They come from a sweep of 13 MLPs on an H100, see NOTES.md.
"""

from __future__ import annotations

from typing import NamedTuple

from blast_kernels.common.constants import BLOCK_SIDES, MULTIPROCESSORS

# Speed of one multiprocessor of an H100 in `sddmm` while some others are idle, flop a µs. When all are busy: 3.5e6.
FLOPS_OF_A_MULTIPROCESSOR = 6.0e6
# Memory bandwidth, bytes a µs.
BYTES = 2.5e6
# Row lists of at least this many entries (with header and padding) count as long.
LONG_LISTS = 128
# With at least this many groups for each multiprocessor, the number of waves counts as large.
MANY_WAVES = 4


class TileConfig(NamedTuple):
    """How a product through row lists is run.

    Attributes:
        tile: Tokens a program.
        slice: Columns of an output block that a program computes.
        k: Inner columns of a step.
        stages: Depth of the software pipeline.
        warps: Warps a program.
        weights_first: Weights on the M side of the product (not for `hidden_grad`).
        group: Token tiles of one row list that run side by side (`swizzled_tile`).
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
        k: Tokens of a step.
        stages: Depth of the software pipeline.
        warps: Warps a program.
        parts: Parts of the tokens (split-K), summed afterwards; 0: `split_k_parts` decides.
    """

    k: int
    stages: int
    warps: int
    parts: int = 0


def supports(*sides: int) -> bool:
    """Whether the kernels take blocks with these sides; the reference takes all."""
    return all(side in BLOCK_SIDES for side in sides)


def tile_config(
    kernel: str, tokens: int, side: int, inner: int, gate: str, is_float32: bool, hopper: bool, width: int = 0
) -> TileConfig:  # fmt: skip
    """The config of a product through row lists.

    Args:
        kernel: The product: `gate_up`, `down`, `hidden_grad` or `input_grad`, as the fields of `IndexLists`.
        tokens: Rows of the activations.
        side: Columns of an output block.
        inner: Columns of an input block.
        gate: One of `constants.GATES`.
        is_float32: Whether the operands are float32 (IEEE dots: no tensor cores).
        hopper: Whether the device has compute capability 9 or 10.
        width: Entries of a row list; 0 if not known.
    """
    if is_float32:
        return TileConfig(32, min(32, side), min(32, inner), 2, 4)
    if not hopper:
        # Without a tensor memory accelerator all addresses are in registers, so use small tiles and many warps.
        return TileConfig(64, min(64, side), min(32, inner), 3, 8)
    # Fastest at 8192 tokens on an H100: each within 7 % of the best of its sweep in all 13 cases, `input_grad` 4 %.
    k, tile = min(64, inner), 128 if tokens > 64 else 64
    half = min(64, side)
    if kernel == "hidden_grad":
        # The end of a tile moves five tiles of data. With 64 tokens more programs fit (1.4 times as fast as 128).
        return TileConfig(64, half, k, 3, 4, False, 16) if inner >= 128 else TileConfig(64, half, k, 2, 4, False, 4)
    if kernel == "gate_up" and gate == "untied" and side >= 128:
        # Whole blocks of weights on the M side: up to 1.2 times as fast as half blocks with 128 tokens.
        return TileConfig(64, 128, k, 3, 4, True, 16)
    if kernel == "gate_up" and gate == "tied":
        return TileConfig(tile, half, k, 2, 4, True, 16)
    if kernel == "gate_up":
        return TileConfig(tile, half, k, 3, 4, False, 4)
    if kernel == "input_grad" and side >= 128 and tokens > 128 and width >= LONG_LISTS:
        # With long lists (8B at 80 %) 1.1 times as fast as 128 tokens; with short ones up to 1.15 times slower.
        return TileConfig(256, side, k, 3, 8, False, 4)
    return TileConfig(tile, side, k, 3, 4, False, 8)


def group_members(side: int, gate_up_blocks: int = 0, down_blocks: int = 0) -> tuple[int, int]:
    """Blocks of a group in the gradients of the blocks of `gate_up` and of `down`.

    Args:
        side: Side of a block.
        gate_up_blocks: Live blocks of gate and up in live rows; 0 if not known.
        down_blocks: Live blocks of the down projection in live columns; 0 if not known.
    """
    return _members(side, gate_up_blocks), _members(side, down_blocks)


def _members(side: int, blocks: int) -> int:
    # One block a program, three programs a multiprocessor. Where that makes one wave, nothing else is within 10 %.
    one_wave = 2 * MULTIPROCESSORS < blocks <= 3 * MULTIPROCESSORS
    return 1 if side >= 128 and one_wave else 2


def sddmm_config(own: int, shared: int, members: int, is_float32: bool, hopper: bool, groups: int = 0) -> SddmmConfig:
    """The config of an SDDMM with groups of `members` blocks.

    Args:
        own: Side of a block along the operand that each member has for itself.
        shared: Side of a block along the operand that the group shares.
        members: Blocks of a group.
        is_float32: Whether the operands are float32.
        hopper: Whether the device has compute capability 9 or 10.
        groups: Block groups; 0 if not known.
    """
    area = own * shared * members
    if is_float32:
        return SddmmConfig(16, 2, 8)
    if not hopper:
        return SddmmConfig(16, 3, 8)
    if area > 128 * 128:
        # With many waves the shorter pipeline is faster (8B at 80 %: 1.16 times), else the deeper one (1B: 1.1 times).
        return SddmmConfig(64, 3 if groups >= MANY_WAVES * MULTIPROCESSORS else 4, 8)
    # Two stages of 128 x 128 are 64 kB, so three programs fit a multiprocessor. Groups of one exist for that.
    return SddmmConfig(64, 2 if area == 128 * 128 and members == 1 else 4, 4)


def split_k_parts(groups: int, members: int, slots: int, tokens: int, size: int, config: SddmmConfig) -> int:
    """Number of parts that the tokens are split in, so that the programs fill the device.

    Args:
        groups: Block groups.
        members: Blocks of a group.
        slots: Blocks of the result.
        tokens: Tokens that are summed over.
        size: Elements of a block.
        config: Its tiles.

    Returns:
        A power of two up to 16, from a model of waves, program starts and the traffic of the parts. 1 if the groups
        fill the device: parts then cost more (up to 1.3 times) than the partly empty last wave.
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
