"""Deals hidden blocks out to processes."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def balanced(work: Sequence[int], parts: int) -> list[list[int]]:
    """Deals units of work out so that the parts have about the same work.

    The largest unit goes first, always to the part with the least work so far (Graham 1969). So two parts differ by one
    unit at most, and each part has a unit if there are as many units as parts.

    Args:
        work: The work of each unit, for instance the live blocks of a hidden block.
        parts: Number of parts.

    Returns:
        For each part the numbers of its units, ascending.

    Example:
        >>> balanced([5, 1, 1, 1, 1, 1], 2)
        [[0], [1, 2, 3, 4, 5]]
    """
    heap = [(0, 0, part) for part in range(parts)]
    found: list[list[int]] = [[] for _ in range(parts)]
    for unit in sorted(range(len(work)), key=lambda number: -work[number]):
        load, count, part = heapq.heappop(heap)
        found[part].append(unit)
        heapq.heappush(heap, (load + work[unit], count + 1, part))
    return [sorted(units) for units in found]
