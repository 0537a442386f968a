"""Trials of a learning rate: one part of the held-out data chooses the best, and the other part judges it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

# What chooses, in order of preference: scores on the part of the held-out data that judges nothing. Records without
# them are chosen by the last value of their validation curve.
CHOOSE_BY = ("validation_bits_per_byte", "validation_top1", "validation_final_loss")
CURVE = "validation_loss"
HIGHER = frozenset({"validation_top1"})
GROUP = ("grid", "hardware", "dataset", "same_but_rate")
# What else is asked of a point. Rows of all columns, of which there are fifty, take ten times as long to go through.
OF_A_POINT = ("point", "learning_rate", "seed", "status", "config")


def chosen_trials(table: pd.DataFrame) -> pd.DataFrame:
    """Of training points that differ in learning rate and seed alone, keeps those of the best learning rate.

    Learning rates are compared over the seeds that all of them have. The judging metrics play no part. A trial that
    failed, for instance by a loss of NaN, counts as a trial and is dropped if another one succeeded.

    Args:
        table: As `blast.experiment.records.table.load_table` makes it.

    Returns:
        The remaining rows, with these columns added:

        - `trials`: learning rates that were tried; missing for benchmarks and for records that do not name theirs.
        - `chosen_by`: the metric that chose, or would have chosen, if one trial was run; None if none was recorded.
        - `choice`: its mean over the compared seeds; NaN if none was recorded.
        - `config`: the same for all points that remain of a group.
    """
    if "trials" in table:
        return table
    table = table.assign(trials=pd.array([pd.NA] * len(table), dtype="Int64"), chosen_by=None, choice=math.nan)
    points = _points(table)
    if points.empty:
        return table
    scores = _choosing_scores(table)
    dropped: set[tuple] = set()
    facts: dict[tuple, dict[str, Any]] = {}
    for group in _groups(points):
        rate, found = _best_rate(group, scores)
        kept = [point for point in group if rate is None or point.learning_rate == rate]
        seeds: set[int] = set()
        for point in group:
            key = point.grid, point.hardware, point.point
            chosen, done = rate is None or point.learning_rate == rate, point.status == "ok"
            tried_elsewhere = not chosen and point.status != "not run"
            # The same run twice, under two names: one of them is a repetition of nothing.
            doubled = chosen and done and point.seed in seeds
            if tried_elsewhere or doubled:
                dropped.add(key)
            else:
                facts[key] = found | {"config": kept[0].config}
            if chosen and done:
                seeds.add(point.seed)
    keys = list(_keys(table))
    table = table[[key not in dropped for key in keys]].copy()
    kept_facts = [facts.get(key) for key in keys if key not in dropped]
    for column in ("trials", "chosen_by", "choice", "config"):
        values = [old if fact is None else fact[column] for fact, old in zip(kept_facts, table[column], strict=True)]
        table[column] = pd.array(values, dtype=table[column].dtype)
    return table


def _keys(table: pd.DataFrame) -> Any:
    columns = [table[name].astype(object).where(table[name].notna(), None) for name in ("grid", "hardware", "point")]
    return zip(*columns, strict=True)


def _points(table: pd.DataFrame) -> pd.DataFrame:
    """One row for each training point that names its group."""
    named = table[(table["suite"] == "train") & table["same_but_rate"].notna() & table["step"].isna()]
    named = named.assign(hardware=named["hardware"].astype(object).where(named["hardware"].notna(), None))
    # A point with some failed metrics is a point that was run.
    ordered = named.assign(place=(named["status"] != "ok").astype(int)).sort_values(["point", "place"], kind="stable")
    return ordered.drop_duplicates(["grid", "hardware", "point"])[[*GROUP, *OF_A_POINT]]


def _groups(points: pd.DataFrame) -> Iterable[list[Any]]:
    """The points of each group of `GROUP`, as tuples; a missing value is one like any other."""
    groups: dict[tuple, list[Any]] = {}
    keys = zip(*(points[name].astype(object).where(points[name].notna(), None) for name in GROUP), strict=True)
    for key, point in zip(keys, points.itertuples(index=False), strict=True):
        groups.setdefault(key, []).append(point)
    return groups.values()


def _choosing_scores(table: pd.DataFrame) -> dict[tuple, dict[str, float]]:
    """For each point the metrics that may choose. Of several tasks, our own evaluation counts."""
    ok = table[(table["suite"] == "train") & (table["status"] == "ok")]
    final = ok[ok["step"].isna() & ok["metric"].isin(CHOOSE_BY)].sort_values("task", na_position="first", kind="stable")
    last = ok[(ok["metric"] == CURVE) & ok["step"].notna()].sort_values("step", ascending=False, kind="stable")
    scores: dict[tuple, dict[str, float]] = {}
    for rows in (final, last):
        for key, metric, value in zip(_keys(rows), rows["metric"], rows["value"], strict=True):
            if not math.isnan(value):
                scores.setdefault(key, {}).setdefault(metric, value)
    return scores


def _best_rate(group: Iterable[Any], scores: dict[tuple, dict[str, float]]) -> tuple[float | None, dict[str, Any]]:
    """The best learning rate of a group, None if nothing was run, and the facts of the choice."""
    by_rate: dict[float, dict[int, dict[str, float]]] = {}
    tried = set()
    for point in group:
        if point.status != "not run":
            tried.add(point.learning_rate)
        if point.status == "ok":
            seeds = by_rate.setdefault(point.learning_rate, {})
            seeds.setdefault(point.seed, scores.get((point.grid, point.hardware, point.point), {}))
    facts = {"trials": len(tried), "chosen_by": None, "choice": math.nan}
    if not by_rate:
        return None, facts
    shared = set.intersection(*(set(seeds) for seeds in by_rate.values()))
    for metric in (*CHOOSE_BY, CURVE):
        means = {}
        for rate, seeds in by_rate.items():
            used = [seeds[seed].get(metric, math.nan) for seed in sorted(shared or seeds)]
            means[rate] = sum(used) / len(used)
        if any(math.isnan(mean) for mean in means.values()):
            continue
        sign = -1 if metric in HIGHER else 1
        rate = min(means, key=lambda rate: (sign * means[rate], rate))
        return rate, facts | {"chosen_by": metric, "choice": means[rate]}
    # Nothing to choose by: the learning rate with most seeds, then the lowest.
    return min(by_rate, key=lambda rate: (-len(by_rate[rate]), rate)), facts
