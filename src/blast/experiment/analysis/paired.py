"""A pruned model compared with dense models, item by item: is it within 2.25 % of dense?

Two measures can decide: bits per byte of the right answers, set by set, and accuracy pooled over sets. Both models
answer the same items, so most of the noise of a score cancels in their difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np

from blast.evaluation.item_scores import ItemScores
from blast.evaluation.statistics import bootstrap_sums, interval

# The paper: the majority of losses relative to dense are under 2.25 %.
LIMIT = 2.25
WITHIN, OUTSIDE, UNDECIDED = "within", "outside", "undecided"
BITS, ACCURACY, POOLED = "bits_per_byte", "accuracy", "pooled"
# Accuracy decides where dense is at least so many standard errors above chance.
DECIDES = 4.0
# With fewer items a percentile interval of a ratio is too narrow.
FEWEST = 30

Sets = Mapping[str, ItemScores]


@dataclass(frozen=True)
class Comparison:
    """One measure on one set, or on several that are pooled. Means over seeds.

    Attributes:
        measure: `bits_per_byte` or `accuracy`.
        task: Name of the set; `pooled` for all sets on which accuracy can decide.
        metric: The metric that it was made of: `bits_per_byte`, `acc`, `acc_norm`; for `pooled` None.
        seeds: Number of pairs.
        items: Number of items.
        value: Score of the pruned models, with its standard error `error`.
        dense: Score of the dense models, with `dense_error`.
        chance: Share of right answers without a model; NaN for bits per byte.
        relative: Loss relative to dense in percent; positive means worse.
        low, high: Its 95 % interval over items.
        lowest, highest: Its extremes over seeds.
        relative_perplexity: For a text, by how many percent the perplexity of a token rises; else NaN.
        kept: Share of dense's margin above chance that is left, with its interval `kept_low`, `kept_high`; NaN for bits
            per byte, and where dense is too near to chance.
        verdict: `within`, `outside`, `undecided`, or None if this measure cannot decide here.
        reason: Why there is no verdict, or why it is undecided; else None.
    """

    measure: str
    task: str
    metric: str | None
    seeds: int
    items: int
    value: float
    error: float
    dense: float
    dense_error: float
    chance: float
    relative: float
    low: float
    high: float
    lowest: float
    highest: float
    relative_perplexity: float
    kept: float
    kept_low: float
    kept_high: float
    verdict: str | None
    reason: str | None


@dataclass(frozen=True)
class Draws:
    """A sum over items and its bootstrap draws, one column a seed: `[k]` and `[DRAWS, k]`."""

    sums: np.ndarray
    draws: np.ndarray

    def __add__(self, other: Draws) -> Draws:
        return Draws(self.sums + other.sums, self.draws + other.draws)

    def __truediv__(self, size: float) -> Draws:
        return Draws(self.sums / size, self.draws / size)

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return float(self.sums.mean())

    @property
    def error(self) -> float:
        """Standard error of that mean over items."""
        return float(self.draws.mean(1).std(ddof=1))


@dataclass(frozen=True)
class Answers:
    """Right answers of two models to some items, and how many `chance` would give."""

    ours: Draws
    theirs: Draws
    items: int
    chance: float

    def __add__(self, other: Answers) -> Answers:
        return Answers(
            self.ours + other.ours, self.theirs + other.theirs, self.items + other.items, self.chance + other.chance
        )


def _draws(task: str, groups: Sequence[Sequence[np.ndarray]]) -> list[Draws]:
    """For each group of columns its sums and draws; all are drawn at once, which costs as much as one."""
    values = np.stack([column for group in groups for column in group], axis=1).astype(np.float64)  # [n, columns]
    sums, draws = values.sum(0), bootstrap_sums(values, task)
    ends = np.cumsum([len(group) for group in groups])[:-1]
    return [Draws(*parts) for parts in zip(np.split(sums, ends), np.split(draws, ends, axis=1), strict=True)]


def judge(low: float, high: float, seeds: Sequence[float], limit: float = LIMIT) -> str:
    """The verdict on a relative loss in percent, from its interval over items and the losses of the single seeds.

    `within` if the whole interval is at most `limit`, `outside` if it is above. If it holds the limit, or single seeds
    lie on both sides, `undecided`.
    """
    if high <= limit and max(seeds) <= limit:
        return WITHIN
    return OUTSIDE if low > limit and min(seeds) > limit else UNDECIDED


def compare(pruned: Sequence[Sets], dense: Sequence[Sets], limit: float = LIMIT) -> list[Comparison]:
    """Compares pruned models with dense ones on every set that the pruned ones answered.

    Items are drawn with replacement, the same ones for all models, and the relative loss of each draw is its mean over
    the pairs. So the interval tells how much depends on the choice of items. Items count as independent, which windows
    of one document are not quite. How much depends on the seed is in `lowest` and `highest`, and a verdict needs all
    seeds on one side; with few seeds more cannot be said.

    In the pooled accuracy each item counts the same. It leaves out sets on which dense is not clearly above chance,
    where a model that knows nothing loses nothing, and sets that not all seeds answered.

    Args:
        pruned: By task, the item scores of the pruned model of each seed.
        dense: The dense model that each of them is paired with, trained on the same tokens.
        limit: Largest relative loss, in percent.

    Returns:
        Bits per byte of each set but images, the accuracy of each set that has one, and the pooled accuracy last. A set
        that no pair answered with the same items is one entry, undecided, with the reason.

    Example:
        >>> text = ItemScores.of_texts([900.0] * 64, [1500] * 64, 64 * 400, "sha256:…")
        >>> [same] = compare([{"text": text}], [{"text": text}])
        >>> same.relative, same.verdict
        (0.0, 'within')
    """
    if len(pruned) != len(dense) or not pruned:
        raise ValueError(f"{len(pruned)} pruned and {len(dense)} dense models; give one pair or more")
    bits, accuracies, pooled = [], [], []
    for task in dict.fromkeys(task for sets in pruned for task in sets):
        pairs = [
            (ours[task], theirs[task])
            for ours, theirs in zip(pruned, dense, strict=True)
            if task in ours and task in theirs and ours[task].digest == theirs[task].digest
        ]
        # Seeds share their items; one that was scored on others does not belong to them.
        pairs = [pair for pair in pairs if pair[0].digest == pairs[0][0].digest]
        if not pairs or not len(pairs[0][0]):
            bits.append(_not_comparable(task, limit))
            continue
        first, metric = pairs[0][0], pairs[0][0].metric
        groups = [[first.bytes], *([pair[side].nats for pair in pairs] for side in (0, 1))]
        if metric is not None:
            groups += [[pair[side].correct[metric] for pair in pairs] for side in (0, 1)]
        sizes, our_nats, their_nats, *right = _draws(task, groups)
        if first.bytes.any():
            bits.append(_bits(task, first, sizes, our_nats, their_nats, limit))
        if metric is not None:
            score = Answers(right[0], right[1], len(first), first.chance.get(metric, 0.0) * len(first))
            accuracies.append(_accuracy(task, metric, score, limit))
            if not math.isnan(accuracies[-1].kept) and len(pairs) == len(pruned):
                pooled.append(score)
    if pooled:
        accuracies.append(_accuracy(POOLED, None, reduce(Answers.__add__, pooled), limit))
    return [*bits, *accuracies]


def overall(comparisons: Sequence[Comparison]) -> str | None:
    """One verdict by both measures: bits per byte of every set, and the pooled accuracy if there is one.

    `within` if all are within, `outside` if one is outside, else `undecided`; None without a comparison.
    """
    deciding = {found.verdict for found in comparisons if found.measure == BITS or found.task == POOLED} - {None}
    if not deciding:
        return None
    return OUTSIDE if OUTSIDE in deciding else UNDECIDED if UNDECIDED in deciding else WITHIN


def _not_comparable(task: str, limit: float) -> Comparison:
    nothing = ItemScores.of_texts([math.nan], [1], 1, "")
    empty = Draws(np.array([math.nan]), np.full((2, 1), math.nan))
    reason = "the pruned and the dense model were not scored on the same items; score both again"
    return replace(_bits(task, nothing, empty, empty, empty, limit), seeds=0, items=0, reason=reason)


def _bits(task: str, items: ItemScores, sizes: Draws, ours: Draws, theirs: Draws, limit: float) -> Comparison:
    singles = 100 * (ours.sums / theirs.sums - 1)
    low, high = interval(100 * (ours.draws / theirs.draws - 1).mean(1))
    bits = math.log(2) * sizes.sums[0]
    spread = [float((part.draws / sizes.draws).mean(1).std(ddof=1)) / math.log(2) for part in (ours, theirs)]
    verdict, reason = judge(low, high, list(singles), limit), None
    if len(items) < FEWEST:
        verdict, reason = UNDECIDED, f"{len(items)} items are too few; at least {FEWEST} are needed"
    more = math.nan
    if items.metric is None:
        more = float(np.mean(100 * np.expm1((ours.sums - theirs.sums) / items.tokens)))
    return Comparison(
        measure=BITS, task=task, metric=BITS, seeds=len(singles), items=len(items),
        value=ours.mean / bits, error=spread[0], dense=theirs.mean / bits, dense_error=spread[1], chance=math.nan,
        relative=float(singles.mean()), low=low, high=high, lowest=float(singles.min()), highest=float(singles.max()),
        relative_perplexity=more, kept=math.nan, kept_low=math.nan, kept_high=math.nan, verdict=verdict, reason=reason,
    )  # fmt: skip


def _accuracy(task: str, metric: str | None, answers: Answers, limit: float) -> Comparison:
    items, chance = answers.items, answers.chance / answers.items
    ours, theirs = answers.ours / items, answers.theirs / items
    kept, kept_interval = math.nan, (math.nan, math.nan)
    relative, ends, singles = math.nan, (math.nan, math.nan), np.array([math.nan])
    verdict, reason = None, None
    if not decides(theirs.mean, theirs.error, chance):
        reason = f"dense is less than {DECIDES:g} standard errors above chance"
    else:
        singles = 100 * (1 - ours.sums / theirs.sums)
        relative = float(singles.mean())
        ends = interval(100 * (1 - ours.draws / theirs.draws).mean(1))
        kept = float(((ours.sums - chance) / (theirs.sums - chance)).mean())
        kept_interval = interval(((ours.draws - chance) / (theirs.draws - chance)).mean(1))
        verdict = judge(*ends, list(singles), limit)
        # Rule of three: where no answer of n changed, up to 3 / n may still change, with a confidence of 95 %.
        needed = math.ceil(3 / (limit / 100 * theirs.mean))
        if items < needed:
            verdict, reason = UNDECIDED, f"{items} items are too few; at least {needed} are needed"
    return Comparison(
        measure=ACCURACY, task=task, metric=metric, seeds=len(ours.sums), items=items,
        value=ours.mean, error=ours.error, dense=theirs.mean, dense_error=theirs.error, chance=chance,
        relative=relative, low=ends[0], high=ends[1], lowest=float(singles.min()), highest=float(singles.max()),
        relative_perplexity=math.nan, kept=kept, kept_low=kept_interval[0], kept_high=kept_interval[1],
        verdict=verdict, reason=reason,
    )  # fmt: skip


def decides(dense: float, error: float, chance: float) -> bool:
    """Whether a dense accuracy is at least `DECIDES` standard errors above chance, so that its loss tells anything."""
    return dense - chance > 0 and dense - chance >= DECIDES * error


def relative_perplexity(loss: float, dense_loss: float) -> float:
    """By how many percent perplexity rises between two losses in nats a token.

    Example:
        >>> round(relative_perplexity(1.0225 * 2.37, 2.37), 1)  # 2.25 % of 2.37 nats
        5.5
    """
    return 100 * math.expm1(loss - dense_loss)
