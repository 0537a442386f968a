"""Standard errors of means, ratios and shares."""

from __future__ import annotations

import math
from collections.abc import Sequence


def mean_and_stderr(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean of independent values, and its standard error (n - 1 in the variance), which is None for one value."""
    n = len(values)
    if n == 0:
        raise ValueError("the mean of no values is not defined")
    mean = math.fsum(values) / n
    if n < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)


def ratio_and_stderr(numerators: Sequence[float], denominators: Sequence[float]) -> tuple[float, float | None]:
    """Ratio of two sums over documents, and its standard error by the delta method.

    With `r = Σy / Σx`, the error is `sqrt(n / (n - 1) · Σ(y - r·x)²) / Σx` (Cochran, Sampling Techniques, 3rd
    ed., section 6.4, without the finite-population factor). Documents are independent; tokens within one are not.

    Args:
        numerators: For bits per byte, the bits of each document.
        denominators: For bits per byte, the bytes of each document.

    Returns:
        The ratio, and its standard error, which is None for one document.
    """
    n = len(numerators)
    if n != len(denominators):
        raise ValueError(f"{n} numerators and {len(denominators)} denominators; they must be as many")
    total = math.fsum(denominators)
    if total <= 0:
        raise ValueError(f"the denominators sum to {total}; they must sum to more than zero")
    ratio = math.fsum(numerators) / total
    if n < 2:
        return ratio, None
    squares = math.fsum((y - ratio * x) ** 2 for y, x in zip(numerators, denominators, strict=True))
    return ratio, math.sqrt(n / (n - 1) * squares) / total


def binomial_stderr(share: float, n: int) -> float:
    """Standard error of a share of `n` independent yes-or-no answers."""
    return math.sqrt(share * (1.0 - share) / n)
