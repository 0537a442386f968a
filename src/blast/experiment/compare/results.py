"""The results of two sides, metric by metric, each with a paired test."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from blast.evaluation.item_scores import HELD_OUT, ItemScores, read_item_scores
from blast.experiment.compare.pairs import Pair
from blast.experiment.compare.sides import Entry
from blast.experiment.compare.significance import Test, over_items, over_seeds, sign_test
from blast.experiment.records.rows import SCORING_RATE, Row, read_setting
from blast.files import canonical_json

HIGHER_IS_BETTER = frozenset({"acc", "acc_norm", "top1", "top5", "rouge_sum", SCORING_RATE})
# What tells several rows of one metric of a point apart, and is no name of it.
LEFT_OUT = frozenset({"chance", "classes", "better", "digest", "grid", "point", "parent", "gpu"})
DETAILS = ("provider", "tokens", "batch", "dtype")


@dataclass(frozen=True)
class Result:
    """One metric of one configuration on both sides. Means over seeds.

    Attributes:
        config: Id of the point without its seed.
        metric: With its task: `acc of piqa`.
        detail: Provider, tokens, …, where a point has several rows of the metric.
        unit: Its unit.
        higher: Whether a higher value is better.
        first, second: The values.
        seeds: How many seeds both sides have.
        test: The paired test.
    """

    config: str
    metric: str
    detail: str
    unit: str
    higher: bool
    first: float
    second: float
    seeds: int
    test: Test

    @property
    def equal(self) -> bool:
        """Whether both values are the same."""
        return self.first == self.second

    @property
    def relative(self) -> float:
        """Difference in percent of the first value; NaN where that is zero."""
        return 100 * (self.second - self.first) / abs(self.first) if self.first else math.nan

    @property
    def better(self) -> bool:
        """Whether the second value is the better one."""
        return self.second > self.first if self.higher else self.second < self.first


def results_of(pairs: Iterable[Pair]) -> list[Result]:
    """All metrics that both points of a pair have, in the order of the records; seeds of one configuration together."""
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(without_seed(pair[0].id), []).append(pair)
    return [result for config, group in groups.items() for result in _of_config(config, group)]


def without_seed(point: str) -> str:
    """The id of a point without its seed."""
    return ".".join(part for part in point.split(".") if not (part.startswith("seed") and part[4:].isdigit()))


def _of_config(config: str, pairs: Sequence[Pair]) -> list[Result]:
    known = [(_by_key(first), _by_key(second)) for first, second in pairs]
    items = [(_items(first), _items(second)) for first, second in pairs]
    found = []
    for key in dict.fromkeys(key for first, _ in known for key in first):
        both = [place for place, (first, second) in enumerate(known) if key in first and key in second]
        if not both:
            continue
        rows = [(known[place][0][key], known[place][1][key]) for place in both]
        test = _test(rows, [items[place] for place in both])
        found.append(_result(config, key, rows, test))
    return found


def _by_key(entry: Entry) -> dict[tuple[str, ...], Row]:
    """The rows of a point by what they measure."""
    found: dict[tuple[str, ...], Row] = {}
    for row in entry.rows:
        if row["value"] is None:
            continue
        # The metrics of a trained model have their settings in its id.
        detail = [str(row[name]) for name in DETAILS if row[name] is not None and row["suite"] != "train"]
        key = row["metric"], row["task"] or "", " ".join(detail)
        if key in found:
            setting = read_setting(row["setting"])
            more = {name: value for name, value in setting.items() if name not in LEFT_OUT}
            key = *key[:2], f"{key[2]} {canonical_json(more)}"
        found.setdefault(key, row)
    return found


def _items(entry: Entry) -> dict[str, ItemScores]:
    return {task: items for file in entry.items for task, items in read_item_scores(file)[0].items()}


def _result(config: str, key: tuple[str, ...], rows: Sequence[tuple[Row, Row]], test: Test) -> Result:
    metric, task, detail = key
    row = rows[0][0]
    first, second = (math.fsum(pair[side]["value"] for pair in rows) / len(rows) for side in (0, 1))
    better = read_setting(row["setting"]).get("better")
    name = f"{metric} of {task}" if task else metric
    higher = better == "higher" if better else metric in HIGHER_IS_BETTER
    return Result(config, name, detail, row["unit"] or "", higher, first, second, len(rows), test)


def _test(rows: Sequence[tuple[Row, Row]], items: Sequence[Any]) -> Test:
    """The test of one metric: by its items where both sides have them, by quantiles for times, else by seeds."""
    row = rows[0][0]
    if row["metric"].endswith("_bytes"):
        same = all(first["value"] == second["value"] for first, second in rows)
        return Test("", len(rows), None, why="equal" if same else "counted exactly: no test")
    task = row["task"] or HELD_OUT
    pairs = [(first[task], second[task]) for first, second in items if task in first and task in second]
    pairs = [pair for pair in pairs if pair[0].digest == pair[1].digest == pairs[0][0].digest and len(pair[0])]
    if len(pairs) == len(rows) and (test := over_items(pairs, row["metric"], _denominator(row["metric"], pairs[0][0]))):
        return test
    if row["spread"] == "q20-80" and len(rows) < 3:
        return _by_quantiles(rows)
    return over_seeds([first["value"] for first, _ in rows], [second["value"] for _, second in rows])


def _denominator(metric: str, items: ItemScores) -> float | None:
    if metric == "bits_per_byte" and items.bytes.any():
        return math.log(2) * float(items.bytes.sum())
    return float(items.tokens) if metric == "loss" and items.tokens else None


def _by_quantiles(rows: Sequence[tuple[Row, Row]]) -> Test:
    """Whether the middle parts of repeated timings overlap; repetitions are not paired, so there is no test."""
    first, second = rows[0]
    if first["value"] == second["value"]:
        return Test("", 1, None, why="equal")
    if None in (first["low"], first["high"], second["low"], second["high"]):
        return Test("", 1, None, why="too few to test (1 timing without quantiles)")
    overlap = first["low"] <= second["high"] and second["low"] <= first["high"]
    return Test("", 1, None, why=f"no test; 20-80 % of the repetitions {'overlap' if overlap else 'are apart'}")


@dataclass(frozen=True)
class Overall:
    """One metric over all pairs of points.

    Attributes:
        metric: Its name.
        pairs: Number of values that both sides have.
        equal: How many are the same.
        better: In how many the second is better.
        relative: Median difference in percent of the first.
        test: Sign test over the pairs.
    """

    metric: str
    pairs: int
    equal: int
    better: int
    relative: float
    test: Test


def overall(results: Iterable[Result]) -> list[Overall]:
    """Each metric over all configurations. Of timings, each provider is one."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        provider = result.detail.split(" ", 1)[0] if result.detail else ""
        groups.setdefault(" ".join(filter(None, (result.metric, provider))), []).append(result)
    found = []
    for metric, group in groups.items():
        relative = sorted(each.relative for each in group if not math.isnan(each.relative))
        middle = (relative[(len(relative) - 1) // 2] + relative[len(relative) // 2]) / 2 if relative else math.nan
        signs = [each.second - each.first for each in group]
        better = sum(each.better for each in group)
        equal = sum(each.equal for each in group)
        found.append(Overall(metric, len(group), equal, better, middle, _signs(signs)))
    return found


def _signs(signs: Sequence[float]) -> Test:
    import numpy as np

    return sign_test(np.array(signs), "sign test over pairs", "pairs")
