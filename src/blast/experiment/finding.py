"""What we have to say about a claim, and when a measured value decides it."""

from __future__ import annotations

import math
from dataclasses import dataclass

VERDICTS = ("met", "not met", "undecided", "projected", "not run")
# A point with at most this much more sparsity than a claim speaks of counts for it.
SAME_SPARSITY = 0.02


@dataclass(frozen=True)
class Finding:
    """What we have to say about one claim.

    Attributes:
        verdict: One of `VERDICTS`.
        ours: Our value as it is printed; "–" without one.
        setting: What it was measured on, or what is missing.
    """

    verdict: str
    ours: str
    setting: str


def not_run(reason: str) -> Finding:
    """The finding where nothing comparable was measured."""
    return Finding("not run", "–", reason)


def compare(low: float, high: float, limit: float, *, at_least: bool) -> str:
    """Verdict on a value known to lie in `[low, high]` against a limit it must reach, or must not pass.

    Args:
        low: Lower end; NaN if there is no interval.
        high: Upper end; NaN if there is no interval.
        limit: The paper's value.
        at_least: Whether the value has to be at least the limit (a speed-up), or at most (a loss).
    """
    if math.isnan(low) or math.isnan(high):
        return "undecided"
    if not at_least:
        low, high, limit = -high, -low, -limit
    if low >= limit:
        return "met"
    return "not met" if high < limit else "undecided"
