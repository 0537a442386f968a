"""In which order the programs of a kernel take the tiles of a product."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def swizzled_tile(tile, records, token_tiles, GROUP):
    """Record and token tile of a program: GROUP token tiles of one record side by side share its weights in L2."""
    span = GROUP * records
    group = tile // span
    inside = tile - group * span
    size = tl.minimum(GROUP, token_tiles - group * GROUP)
    record = inside // size
    return record, group * GROUP + inside - record * size
