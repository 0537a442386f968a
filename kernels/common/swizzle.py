"""The order in which the programs of a kernel take the tiles of a product, chosen so that they reuse the L2 cache."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def swizzled_tile(program, rows, token_tiles, GROUP):
    """Row list and token tile of a program: GROUP token tiles of one row run side by side and share its weights in L2.

    Args:
        program: Number of the program, from 0 to `rows · token_tiles`.
        rows: Number of row lists.
        token_tiles: Number of token tiles.
        GROUP: Token tiles that run side by side.
    """
    span = GROUP * rows
    group = program // span
    inside = program - group * span
    size = tl.minimum(GROUP, token_tiles - group * GROUP)
    row = inside // size
    return row, group * GROUP + inside - row * size
