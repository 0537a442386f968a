"""The time of an all-reduce over more GPUs than were measured, from those that were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class AllReduce(NamedTuple):
    """A measured all-reduce.

    Attributes:
        size: Number of GPUs.
        bytes: Bytes that each adds.
        seconds: How long it took.
    """

    size: int
    bytes: int
    seconds: float


class Link(NamedTuple):
    """A ring of GPUs, each with a link to the next: `2 (n - 1) (latency + bytes / (n bandwidth))` for `n` GPUs.

    In a ring each GPU passes on `n - 1` pieces of a n-th twice (Patarasuk and Yuan 2009).

    Attributes:
        latency: Seconds of a piece without bytes.
        seconds_per_byte: Seconds of a byte, the inverse of the bandwidth.
    """

    latency: float
    seconds_per_byte: float

    def seconds(self, size: int, count: int) -> float:
        """How long an all-reduce of `count` bytes over `size` GPUs takes."""
        steps = 2 * (size - 1)
        return steps * (self.latency + count / size * self.seconds_per_byte)


def fitted(measured: Sequence[AllReduce]) -> Link | None:
    """The link that fits measured all-reduces best, in the sum of squares of relative errors.

    Args:
        measured: All-reduces over at least two GPUs; others are left out.

    Returns:
        None without any. A part that would be negative is zero, and the other is fitted again.
    """
    known = [each for each in measured if each.size > 1]
    if not known:
        return None
    seconds = np.array([each.seconds for each in known])
    steps = np.array([2 * (each.size - 1) for each in known], dtype=float)
    parts = np.stack([steps, steps * [each.bytes / each.size for each in known]], axis=1) / seconds[:, None]
    best, *_ = np.linalg.lstsq(parts, np.ones(len(known)), rcond=None)
    if len({(each.size, each.bytes) for each in known}) < 2 or best[0] < 0 or best[1] < 0:
        alone = [float(column.sum() / (column @ column)) for column in parts.T]
        errors = [((column * value - 1) ** 2).sum() for column, value in zip(parts.T, alone, strict=True)]
        return Link(alone[0], 0.0) if errors[0] <= errors[1] else Link(0.0, alone[1])
    return Link(float(best[0]), float(best[1]))
