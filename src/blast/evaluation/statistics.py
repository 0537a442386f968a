"""Standard errors of means, ratios and shares, and the bootstrap."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

DRAWS = 2000
SEED = 0
_DRAWS_AT_ONCE = 250  # so that the counts as floats need little memory


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


def bootstrap_sums(values: np.ndarray, name: str) -> np.ndarray:
    """Sums over items that are drawn with replacement, `DRAWS` times: the bootstrap of Efron (1979).

    The draws depend only on the number of items and the name. So two models stay paired: whatever is drawn for one is
    drawn for the other, also in another call.

    Args:
        values: By item, `[n, k]` or `[n]`.
        name: Name of the set of items. Two sets with other names are drawn independently.

    Returns:
        The sums, `[DRAWS, k]` or `[DRAWS]`, float64.

    Example:
        >>> means = bootstrap_sums(np.array([1.0, 2.0, 3.0, 4.0]), "numbers") / 4
        >>> bool(abs(means.std() - 0.559) < 0.03)  # the standard error of the mean, with n in the variance
        True
    """
    counts = _draws(len(values), name)
    parts = np.split(counts, range(_DRAWS_AT_ONCE, DRAWS, _DRAWS_AT_ONCE))
    return np.concatenate([part.astype(np.float64) @ values for part in parts])


@lru_cache(maxsize=16)
def _draws(n: int, name: str) -> np.ndarray:
    """How often each item is drawn, `[DRAWS, n]`, uint8: a count above 255 does not happen."""
    random = np.random.default_rng([SEED, zlib.crc32(name.encode())])
    drawn = (np.bincount(random.integers(0, n, n), minlength=n) for _ in range(DRAWS))
    return np.stack([counts.astype(np.uint8) for counts in drawn])


def interval(draws: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of bootstrap draws."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
