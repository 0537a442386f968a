"""Paired tests of a difference: over items, over seeds, or over pairs of points. Each says its name and its n.

`scipy.special` has the distributions; importing `scipy.stats` for them takes two seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from blast.evaluation.item_scores import ItemScores
from blast.experiment.analysis.paired import FEWEST

# With fewer seeds, or fewer pairs that differ, no test can tell a difference from chance.
FEWEST_SEEDS = 3
FEWEST_SIGNS = 6
LEVEL = 0.05
# Metrics that rise with the sum of the log-likelihoods of all items.
BY_NATS = ("loss", "perplexity", "bits_per_byte", "byte_perplexity", "word_perplexity")


@dataclass(frozen=True)
class Test:
    """What a paired test found. Differences are the second side minus the first.

    Attributes:
        name: Its name; empty if there was nothing to test.
        n: Number of items, seeds or pairs.
        p: Two-sided; None if there are too few to test.
        low, high: 95 % interval of the difference, in the unit of the metric; NaN without one.
        why: If there is no p, the reason.
    """

    name: str
    n: int
    p: float | None
    low: float = math.nan
    high: float = math.nan
    why: str = ""

    @property
    def significant(self) -> bool:
        """Whether the difference is unlikely to be chance."""
        return self.p is not None and self.p < LEVEL

    def __str__(self) -> str:
        if self.p is None:
            return self.why
        p = "p < 0.001" if self.p < 0.001 else f"p = {self.p:.3f}"
        between = "" if math.isnan(self.low) else f"; 95 %: {self.low:+.3g} to {self.high:+.3g}"
        return f"{p} ({self.name}, n = {self.n:,}{between})"


def over_items(
    pairs: Sequence[tuple[ItemScores, ItemScores]], metric: str, denominator: float | None = None
) -> Test | None:
    """Tests a metric item by item; None if the items do not decide it.

    Args:
        pairs: The items of both sides, a pair for each seed; all of the same set.
        metric: Those of `BY_NATS` are tested by the log-likelihoods, with a t-test of the differences; `acc`,
            `acc_norm` and `top1` by the right answers, with McNemar's exact test, or with a t-test if there are several
            seeds, whose answers are averaged.
        denominator: What the sum of the differences in nats is divided by, for the interval; None without one.
    """
    first = pairs[0][0]
    if metric in BY_NATS:
        differences = np.mean([theirs.nats - ours.nats for ours, theirs in pairs], axis=0)
        scale = len(first) / denominator if denominator else math.nan
        return t_test(differences, "paired t-test over items", FEWEST, "items", scale)
    if metric not in first.correct:
        return None
    signs = [theirs.correct[metric].astype(int) - ours.correct[metric].astype(int) for ours, theirs in pairs]
    if len(signs) == 1:
        return sign_test(signs[0], "McNemar's exact test over items", "answers")
    return t_test(np.mean(signs, axis=0), "paired t-test over items", FEWEST, "items", 1.0)


def over_seeds(first: Sequence[float], second: Sequence[float]) -> Test:
    """Tests values of the same seeds."""
    differences = np.subtract(second, first)
    return t_test(differences, "paired t-test over seeds", FEWEST_SEEDS, "seeds", 1.0)


def t_test(differences: np.ndarray, name: str, fewest: int, what: str, scale: float) -> Test:
    """Student's test of whether the mean difference is zero.

    Args:
        differences: One for each item or seed.
        name: Name of the test.
        fewest: With fewer there is no test.
        what: What they are, in the plural.
        scale: What the mean is multiplied by to be in the unit of the metric.
    """
    from scipy.special import stdtr, stdtrit

    n = len(differences)
    if not np.any(differences):
        return Test("", n, None, why=f"equal on all {n:,} {what}" if n > 1 else "equal")
    if n < fewest:
        one = what.removesuffix("s") if n == 1 else what
        return Test("", n, None, why=f"too few to test ({n} {one}; {fewest} are needed)")
    mean, error = float(np.mean(differences)), float(np.std(differences, ddof=1)) / math.sqrt(n)
    if error == 0:
        return Test("", n, None, mean * scale, mean * scale, why=f"the same difference on all {n:,} {what}")
    half = float(stdtrit(n - 1, 0.975)) * error
    p = 2 * float(stdtr(n - 1, -abs(mean / error)))
    return Test(name, n, p, (mean - half) * scale, (mean + half) * scale)


def sign_test(differences: np.ndarray, name: str, what: str) -> Test:
    """The exact binomial test of whether a difference is as often above zero as below; zeros do not count."""
    from scipy.special import bdtr

    n, up, down = len(differences), int(np.sum(differences > 0)), int(np.sum(differences < 0))
    if up + down == 0:
        return Test("", n, None, why=f"equal in all {n:,} {what}" if n > 1 else "equal")
    if up + down < FEWEST_SIGNS:
        return Test("", n, None, why=f"too few to test ({up + down} of {n:,} {what} differ; {FEWEST_SIGNS} are needed)")
    return Test(name, n, min(1.0, 2 * float(bdtr(min(up, down), up + down, 0.5))))


def holm(values: Sequence[float], level: float = LEVEL) -> list[bool]:
    """Which of several tests are significant together, by Holm's step-down correction (1979).

    Args:
        values: The p of each test.
        level: Largest chance that one of the tests is wrongly significant.

    Example:
        >>> holm([0.04, 0.001, 0.03])
        [False, True, False]
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    found = [False] * len(values)
    for place, index in enumerate(order):
        if values[index] >= level / (len(values) - place):
            break
        found[index] = True
    return found
