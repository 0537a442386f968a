"""Which kernel, with which tiles, for a product of a given shape: rules read off measurements (see NOTES.md)."""

from __future__ import annotations

from typing import NamedTuple

GATES = ("none", "untied", "tied")
ACTIVATIONS = ("none", "silu", "gelu", "gelu_tanh")
BLOCK_SIDES = (16, 32, 64, 128)
# Multiprocessors of an H100 or H200; a plan wants two programs for each.
MULTIPROCESSORS = 132


class Plan(NamedTuple):
    """How one product is run.

    Attributes:
        kernel: `stream` or `tiles`.
        tile: Tokens a program.
        slice: Rows of a block that a program computes.
        k: Columns of a block a step (`tiles`), or columns a step over several small blocks (`stream`).
        stages: Depth of the software pipeline.
        warps: Warps a program.
        weights_first: Weights on the M side of the product (`tiles`).
        group: Token tiles that run side by side (`tiles`).
        registers: Cap on registers a thread, or None.
        split: Programs that share a block list (see `combine`).
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


def plan_for(
    tokens: int, records: int, b_out: int, b_in: int, gate: str, wide_float: bool = False, has_tma: bool = True
) -> Plan:
    """The plan for a product.

    Args:
        tokens: Rows of the activations.
        records: Block rows that are computed.
        b_out: Rows of a block.
        b_in: Columns of a block.
        gate: One of `GATES`.
        wide_float: Whether the operands are float32 (IEEE dots: no tensor cores).
        has_tma: Whether the device has a tensor memory accelerator (compute capability 9).

    Returns:
        A plan that fits the block.
    """
    if wide_float:
        return Plan("stream", 16, min(32, b_out), min(b_in, 32), 2, 4)
    half = min(64, b_out)
    # wgmma wants 64 rows on its M side: weights where a slice has them, otherwise tokens.
    weights_first = half * (2 if gate == "tied" else 1) >= 64
    few = tokens <= 16 or (tokens <= 32 and not weights_first)
    if few or not has_tma or max(b_out, b_in) < 32:
        tile = 16 if tokens <= 16 else 32 if tokens <= 32 else 64
        return Plan("stream", tile, min(32 if gate == "tied" else 64, b_out), max(128, b_in), 4, 4)
    k = min(64, b_in)
    if tokens <= 32:
        return Plan("tiles", 32, half, min(128, b_in), 4, 4)
    if tokens <= 128:
        enough = records * (b_out // half) >= 2 * MULTIPROCESSORS
        if tokens > 64 and enough:
            return Plan("tiles", 128, half, k, 4, 4, weights_first)
        return Plan("tiles", 64, half, k, 4 if enough else 6, 4, weights_first)
    if gate == "tied":
        large = records >= 300
        return Plan("tiles", 128, half, k, 3 if large else 2, 4, False, 8 if large else 16)
    if b_out < 128:
        return Plan("tiles", 128, b_out, k, 3, 4, False, 8)
    if gate == "untied":
        return Plan("tiles", 128, 128, k, 3 if records >= 100 else 2, 4, True, 8)
    return Plan("tiles", 128, 128, k, 3, 4, False, 8 if records > 32 else 16)
