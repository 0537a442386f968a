"""With which tiles the training kernels run. Judged from the inference kernels' measurements, see NOTES.md."""

from __future__ import annotations

from typing import NamedTuple

from blast_kernels.plan import BLOCK_SIDES, MULTIPROCESSORS

# What one multiprocessor of an H100 reaches in these kernels, flop a µs, and what its memory delivers, bytes a µs.
FLOPS_OF_A_MULTIPROCESSOR = 3.6e6
BYTES = 2.5e6


class TilePlan(NamedTuple):
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


class SamplePlan(NamedTuple):
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


def tile_plan(kernel: str, tokens: int, side: int, inner: int, gate: str, wide_float: bool, hopper: bool) -> TilePlan:
    """The plan of `front`, `down`, `hidden` or `inputs`.

    Args:
        kernel: Which product.
        tokens: Rows of the activations.
        side: Columns of an output block.
        inner: Columns of an input block.
        gate: `none`, `untied` or `tied`.
        wide_float: Whether the operands are float32 (IEEE dots: no tensor cores).
        hopper: Whether the device has compute capability 9.
    """
    if wide_float:
        return TilePlan(32, min(32, side), min(32, inner), 2, 4)
    if not hopper:
        # Without a tensor memory accelerator every address is held in registers: small tiles, many warps.
        return TilePlan(64, min(64, side), min(32, inner), 3, 8)
    k, tile = min(64, inner), 128 if tokens > 64 else 64
    if kernel == "hidden":
        # Five tiles of traffic at its end: eight warps hold them without spills.
        return TilePlan(tile, min(64, side), k, 3, 8, False, 16)
    if kernel == "front":
        return TilePlan(tile, min(64, side), k, 3, 4, False, 16)
    return TilePlan(tile, side, k, 3, 4, False, 8)


def group_members(side: int) -> tuple[int, int]:
    """Blocks of a group in the gradient of the blocks, front and down projection."""
    return (4, 4) if side <= 64 else (2, 2)


def sample_plan(own: int, shared: int, members: int, wide_float: bool, hopper: bool) -> SamplePlan:
    """The plan of a sampled product with groups of `members` blocks."""
    area = own * shared * members
    warps = 8 if area > 128 * 128 else 4
    if wide_float:
        return SamplePlan(16, 2, 8)
    if not hopper:
        return SamplePlan(16, 3, 8)
    return SamplePlan(64, 4 if area > 128 * 128 else 3, warps)


def parts_for(groups: int, members: int, slots: int, tokens: int, size: int, plan: SamplePlan) -> int:
    """In how many parts the tokens are cut, so that programs fill the device in whole waves.

    Args:
        groups: Group records.
        members: Blocks of a group.
        slots: Blocks of the result.
        tokens: Tokens summed over.
        size: Elements of a block.
        plan: Tiles.

    Returns:
        Parts, at least 1; chosen by a model of waves, starts and the traffic of the parts.
    """
    steps = -(-tokens // plan.k)
    resident = 2 if plan.warps <= 4 else 1
    step_time = resident * 2 * size * members * plan.k / FLOPS_OF_A_MULTIPROCESSOR

    def time(parts: int) -> float:
        waves = -(-groups * parts // (resident * MULTIPROCESSORS))
        own = waves * (-(-steps // parts) * step_time + 3.0)
        return own if parts == 1 else own + 3.0 + parts * slots * size * 8 / BYTES

    return min(range(1, max(1, min(16, steps)) + 1), key=time)
