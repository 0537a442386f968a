"""Scores compared: chance, spread over seeds, loss relative to dense. Derived from rows when needed, never stored."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from blast.experiment.records.table import one_machine

# Metrics of model quality in display order. The first one that a point has is its main metric.
QUALITY = ("bits_per_byte", "perplexity", "top1", "acc", "top5", "loss")
HIGHER_IS_BETTER = frozenset({"acc", "acc_norm", "top1", "top5", "rouge_sum"})
KEY = ("grid", "hardware", "config", "metric", "task")
PLACE = ("grid", "hardware", "model", "dataset", "metric", "task")
SUMMARY = (
    "grid", "hardware", "model", "dataset", "method", "metric", "task", "config", "sparsity", "block", "unit", "higher",
    "chance", "source", "achieved_sparsity", "seeds", "n", "value", "error", "lowest", "highest", "at_chance", "dense",
    "relative", "relative_error", "relative_lowest", "relative_highest", "noise", "within_noise",
)  # fmt: skip


def _present(value: Any) -> bool:
    return value is not None and not pd.isna(value)


def chance_of(row: Any) -> float:
    """Score of random guessing; NaN for metrics without one (bits per byte, a loss).

    It is recorded with each score: by the evaluation of images, and from `chance` in the YAML file of an lm-eval task.
    """
    return float(row.chance) if _present(row.chance) else math.nan


def higher_is_better(row: Any) -> bool:
    """Whether a higher score is better: from the row, else from the metric's name."""
    return row.better == "higher" if _present(row.better) else row.metric in HIGHER_IS_BETTER


def standard_error(row: Any) -> float:
    """Standard error from `low` and `high`, which lie one error from the value or span 95 %; NaN if unknown."""
    width = {"stderr": 2.0, "ci95": 2 * 1.96}.get(row.spread)
    return (row.high - row.low) / width if width and _present(row.high) and _present(row.low) else math.nan


def at_chance(value: float, error: float, chance: float) -> bool:
    """Whether a score is no better than guessing: below chance, or within two standard errors above it.

    A NaN error counts as zero. A metric without chance (NaN) is never at chance.
    """
    return not math.isnan(chance) and value <= chance + 2 * (0.0 if math.isnan(error) else error)


def relative_loss(value: float, dense: float, higher: bool) -> float:
    """Loss relative to dense in percent; positive means worse than dense."""
    return 100 * ((dense - value) if higher else (value - dense)) / abs(dense) if dense else math.nan


def final_scores(table: pd.DataFrame, metrics: tuple[str, ...] = QUALITY) -> pd.DataFrame:
    """Final quality scores: one row for each point, metric and task.

    All rows of one grid, model and dataset come from one machine. Of points that differ in `execution` alone, the
    `auto` one is kept. If a point has bits per byte from lm-eval, that value replaces ours, because it has a standard
    error over documents.

    Returns:
        The table's columns and `error` (standard error), `chance`, `higher`.
    """
    table = without_execution_variants(table)
    wanted = (
        (table["status"] == "ok") & (table["suite"] == "train") & table["step"].isna() & table["metric"].isin(metrics)
    )
    scores = one_machine(table[wanted])
    rows = list(scores.itertuples(index=False))
    from_lm_eval = {
        (row.grid, row.hardware, row.point) for row in rows if row.metric == "bits_per_byte" and _present(row.task)
    }
    kept = [
        row.metric != "bits_per_byte" or _present(row.task) or (row.grid, row.hardware, row.point) not in from_lm_eval
        for row in rows
    ]
    scores = scores[pd.Series(kept, index=scores.index, dtype=bool)]
    rows = list(scores.itertuples(index=False))
    return scores.assign(
        error=pd.Series([standard_error(row) for row in rows], index=scores.index, dtype=float),
        chance=pd.Series([chance_of(row) for row in rows], index=scores.index, dtype=float),
        higher=pd.Series([higher_is_better(row) for row in rows], index=scores.index, dtype=bool),
    )


def _place(row: Any) -> tuple[Any, ...]:
    return tuple(getattr(row, key) for key in PLACE)


def _dense_of(row: Any, dense: dict[tuple, dict[str, Any]]) -> Any:
    """The dense run to compare a score with: its parent, else one of the same seed, else any of the same place."""
    places = dense.get(_place(row), {})
    if row.parent in places:
        return places[row.parent]
    return next((other for other in places.values() if other.seed == row.seed), next(iter(places.values()), None))


def _summary(rows: list[Any], parents: list[Any]) -> dict[str, Any]:
    """One summary line from the seeds of a score and the dense run that each is compared with."""
    first, values = rows[0], [row.value for row in rows]
    errors = [row.error for row in rows if not math.isnan(row.error)]
    # Seeds share their evaluation examples: averaging over seeds does not reduce the error from the examples.
    error = math.sqrt(sum(e * e for e in errors) / len(errors)) if errors else math.nan
    mean = sum(values) / len(values)
    line = {
        **{key: getattr(first, key) for key in ("grid", "hardware", "model", "dataset", "method", "metric", "task")},
        **{key: getattr(first, key) for key in ("config", "sparsity", "block", "unit", "higher", "chance", "source")},
        "achieved_sparsity": pd.Series([row.achieved_sparsity for row in rows], dtype=float).mean(),
        "seeds": len(rows),
        "n": first.n,
        "value": mean,
        "error": error,
        "lowest": min(values),
        "highest": max(values),
        "at_chance": at_chance(mean, error, first.chance),
        "dense": math.nan, "relative": math.nan, "relative_error": math.nan, "relative_lowest": math.nan,
        "relative_highest": math.nan, "noise": math.nan, "within_noise": None,
    }  # fmt: skip
    pairs = [(row, parent) for row, parent in zip(rows, parents, strict=True) if parent is not None]
    if first.method == "dense" or not pairs:
        return line
    dense = list({parent.point: parent for _, parent in pairs}.values())
    dense_mean = sum(parent.value for parent in dense) / len(dense)
    dense_error = max((parent.error for parent in dense if not math.isnan(parent.error)), default=math.nan)
    line["dense"] = dense_mean
    if line["at_chance"] or at_chance(dense_mean, dense_error, first.chance):
        return line
    single = [relative_loss(row.value, parent.value, first.higher) for row, parent in pairs]
    line["relative"] = sum(single) / len(single)
    line["relative_lowest"], line["relative_highest"] = min(single), max(single)
    line["relative_error"] = 100 * math.hypot(error, dense_error) / abs(dense_mean)
    return line


def summarise(table: pd.DataFrame, metrics: tuple[str, ...] = QUALITY) -> pd.DataFrame:
    """Quality of each configuration over its seeds, compared with the dense runs on the same machine.

    Returns:
        One row for each grid, machine, configuration (all settings but the seed), metric and task. Columns:

        - `value`: mean over `seeds` seeds; `lowest` and `highest` are the extremes.
        - `error`: standard error of the score. `at_chance`: see `at_chance`.
        - `dense`: mean score of the dense runs.
        - `relative`: mean loss relative to dense in percent, each seed against its own parent; NaN if a score is at
          chance. `relative_lowest` and `relative_highest` are its extremes.
        - `relative_error`: standard error of `relative` for independent scores. Both scores share their examples, so
          the true error is smaller.
        - `noise`: spread over seeds in percent of dense, the larger of dense's and the configuration's own; NaN if
          each has one seed. `within_noise`: whether the gap to dense is smaller than that spread; None if unknown.
    """
    scores = final_scores(table, metrics)
    dense: dict[tuple, dict[str, Any]] = {}
    groups: dict[tuple, list[Any]] = {}
    for row in scores.itertuples(index=False):
        groups.setdefault(tuple(getattr(row, key) for key in KEY), []).append(row)
        if row.method == "dense":
            dense.setdefault(_place(row), {})[row.point] = row
    lines = []
    for rows in groups.values():
        line = _summary(rows, [_dense_of(row, dense) for row in rows])
        if not math.isnan(line["relative"]):
            siblings = [row.value for row in dense[_place(rows[0])].values()]
            spreads = [max(group) - min(group) for group in (siblings, [row.value for row in rows]) if len(group) > 1]
            if spreads:
                gap = abs(line["value"] - sum(siblings) / len(siblings))
                line["noise"] = 100 * max(spreads) / abs(line["dense"])
                line["within_noise"] = gap < max(spreads) or gap == 0
        lines.append(line)
    frame = pd.DataFrame(lines, columns=list(SUMMARY))
    order = ["grid", "model", "dataset", "metric", "task", "method", "sparsity", "config"]
    return frame.sort_values(order, kind="stable", na_position="first", ignore_index=True)


def main_metric(summary: pd.DataFrame) -> pd.DataFrame:
    """For each grid, model and dataset, keeps the rows of the metric that comes first in `QUALITY`."""
    rank = summary["metric"].map({metric: place for place, metric in enumerate(QUALITY)})
    best = rank.groupby([summary[key].fillna("") for key in ("grid", "model", "dataset")]).transform("min")
    return summary[rank == best]


def without_execution_variants(table: pd.DataFrame) -> pd.DataFrame:
    """Of points that differ in `execution` alone, keeps the `auto` one, even if it failed."""
    key = table["grid"].astype(str) + " " + table["same_but_execution"].astype(str)
    known = table["same_but_execution"].notna()
    variants = known & (table["execution"] != "auto") & key.isin(key[known & (table["execution"] == "auto")])
    return table[~variants]


def missing(table: pd.DataFrame, execution_variants: bool = False) -> pd.DataFrame:
    """Points that failed or were not run: one row each with `status` and, if it failed, `cause`.

    Args:
        table: Rows of all points, the finished ones included.
        execution_variants: Whether to list points that differ from another one in `execution` alone.
    """
    lost = table if execution_variants else without_execution_variants(table)
    lost = lost[lost["status"] != "ok"]
    columns = [
        "grid", "hardware", "suite", "model", "dataset", "method", "sparsity", "block", "seed", "status", "cause",
        "point", "execution",
    ]  # fmt: skip
    return lost[columns].drop_duplicates(["grid", "hardware", "point"]).reset_index(drop=True)
