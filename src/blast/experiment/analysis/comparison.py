"""Scores compared: chance, spread over seeds, loss relative to dense. Derived from rows when needed, never stored."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from blast.experiment.analysis.trials import HIGHER as HIGHER_CHOICE
from blast.experiment.analysis.trials import chosen_trials
from blast.experiment.records.table import one_machine

# Metrics of model quality in display order. The first one that a point has is its main metric.
QUALITY = ("bits_per_byte", "perplexity", "top1", "acc", "top5", "loss")
HIGHER_IS_BETTER = frozenset({"acc", "acc_norm", "top1", "top5", "rouge_sum"})
KEY = ("grid", "hardware", "config", "metric", "task")
PLACE = ("grid", "hardware", "model", "dataset", "metric", "task")
# The same for all points of a configuration.
SAME = (
    "grid", "hardware", "model", "dataset", "method", "metric", "task", "config", "sparsity", "block", "unit", "higher",
    "chance", "source", "start", "trained", "teacher", "ffn", "choices", "learning_rate", "trials", "chosen_by",
    "choice", "parameters", "prunable",
)  # fmt: skip
SUMMARY = (
    *SAME, "achieved_sparsity", "seeds", "n", "value", "error", "lowest", "highest", "at_chance", "dense",
    "dense_config", "relative", "relative_error", "relative_lowest", "relative_highest", "noise", "within_noise",
    "points", "by_seed",
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
    `auto` one is kept, and of trials of a learning rate the best (see `trials.chosen_trials`). If a point has bits per
    byte from lm-eval, that value replaces ours, because it has a standard error over documents.

    Returns:
        The table's columns and `error` (standard error), `chance`, `higher`.
    """
    table = chosen_trials(without_execution_variants(table))
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


class _Dense:
    """The dense models without a teacher, and which of them a score is compared with."""

    def __init__(self, groups: list[list[Any]]) -> None:
        self._by_place: dict[tuple, list[list[Any]]] = {}
        for rows in groups:
            if rows[0].method == "dense" and not _present(rows[0].teacher):
                self._by_place.setdefault(_place(rows[0]), []).append(rows)

    def best(self, row: Any) -> list[Any]:
        """Points of the best dense model of the same start, trained on as many tokens; empty if there is none.

        The metric that chooses between trials says which is the best. Where it was not recorded, it is the parent.
        """
        known = self._by_place.get(_place(row), [])
        alike = [rows for rows in known if self._same_run(rows[0], row)] or [
            rows for rows in known if row.parent in {dense.point for dense in rows}
        ]
        if not alike:
            return []
        chosen_by = {rows[0].chosen_by for rows in alike}
        if len(alike) > 1 and len(chosen_by) == 1 and None not in chosen_by:
            sign = -1 if chosen_by <= HIGHER_CHOICE else 1
            return min(alike, key=lambda rows: sign * rows[0].choice)
        return next((rows for rows in alike if row.parent in {dense.point for dense in rows}), alike[0])

    @staticmethod
    def _same_run(dense: Any, row: Any) -> bool:
        return _text(dense.start) == _text(row.start) and (
            dense.trained == row.trained or math.isnan(dense.trained) or math.isnan(row.trained)
        )


def _text(value: Any) -> str:
    # Rows of older versions do not say how a point started.
    return str(value) if _present(value) else "scratch"


def _summary(rows: list[Any], dense: list[Any]) -> dict[str, Any]:
    """One summary line from the seeds of a score and those of the dense model that it is compared with."""
    first, values = rows[0], [row.value for row in rows]
    error = _shared_error(rows)
    mean = sum(values) / len(values)
    line = {
        **{key: getattr(first, key) for key in SAME},
        "achieved_sparsity": pd.Series([row.achieved_sparsity for row in rows], dtype=float).mean(),
        "seeds": len(rows),
        "n": first.n,
        "value": mean,
        "error": error,
        "lowest": min(values),
        "highest": max(values),
        "at_chance": at_chance(mean, error, first.chance),
        "points": tuple(row.point for row in rows),
        "by_seed": {row.seed: row.value for row in rows},
        "dense": math.nan, "dense_config": None, "relative": math.nan, "relative_error": math.nan,
        "relative_lowest": math.nan, "relative_highest": math.nan, "noise": math.nan, "within_noise": None,
    }  # fmt: skip
    if not dense or first.point in {row.point for row in dense}:
        return line
    by_seed = {row.seed: row.value for row in dense}
    dense_mean = sum(by_seed.values()) / len(by_seed)
    dense_error = _shared_error(dense)
    line["dense"], line["dense_config"] = dense_mean, dense[0].config
    # A dense model that gives no right answer at all (LAMBADA) has nothing to lose.
    if not dense_mean or line["at_chance"] or at_chance(dense_mean, dense_error, first.chance):
        return line
    single = [relative_loss(row.value, by_seed.get(row.seed, dense_mean), first.higher) for row in rows]
    line["relative"] = sum(single) / len(single)
    line["relative_lowest"], line["relative_highest"] = min(single), max(single)
    line["relative_error"] = 100 * math.hypot(error, dense_error) / abs(dense_mean)
    spreads = [max(group) - min(group) for group in (list(by_seed.values()), values) if len(group) > 1]
    if spreads:
        gap = abs(mean - dense_mean)
        line["noise"] = 100 * max(spreads) / abs(dense_mean)
        line["within_noise"] = gap < max(spreads) or gap == 0
    return line


def _shared_error(rows: list[Any]) -> float:
    # Seeds share their evaluation examples: averaging over seeds does not reduce the error from the examples.
    errors = [row.error for row in rows if not math.isnan(row.error)]
    return math.sqrt(sum(error * error for error in errors) / len(errors)) if errors else math.nan


def summarise(table: pd.DataFrame, metrics: tuple[str, ...] = QUALITY) -> pd.DataFrame:
    """Quality of each configuration over its seeds, compared with the best dense model on the same machine.

    Returns:
        One row for each grid, machine, configuration (all settings but the seed), metric and task. Columns:

        - `value`: mean over `seeds` seeds; `lowest` and `highest` are the extremes. `points`: their ids. `by_seed`: the
          value of each seed.
        - `error`: standard error of the score. `at_chance`: see `at_chance`.
        - `dense`: mean score of the best dense model without a teacher that started alike and was trained on as many
          tokens; `dense_config` names it.
        - `relative`: mean loss relative to dense in percent, each seed against dense of the same seed, else against the
          mean of dense; NaN if a score is at chance. `relative_lowest` and `relative_highest` are its extremes.
        - `relative_error`: standard error of `relative` for independent scores. Both scores share their examples, so
          the true error is smaller.
        - `noise`: spread over seeds in percent of dense, the larger of dense's and the configuration's own; NaN if
          each has one seed. `within_noise`: whether the gap to dense is smaller than that spread; None if unknown.
        - `trials`, `chosen_by`, `choice`: see `trials.chosen_trials`.
    """
    scores = final_scores(table, metrics)
    groups: dict[tuple, list[Any]] = {}
    for row in scores.itertuples(index=False):
        groups.setdefault(tuple(getattr(row, key) for key in KEY), []).append(row)
    dense = _Dense(list(groups.values()))
    lines = [_summary(rows, dense.best(rows[0])) for rows in groups.values()]
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
    known = table["same_but_execution"].notna()
    rows = list(zip(known, table["execution"], table["grid"], table["same_but_execution"], strict=True))
    usual = {tuple(key) for known, execution, *key in rows if known and execution == "auto"}
    kept = [not known or execution == "auto" or tuple(key) not in usual for known, execution, *key in rows]
    return table if all(kept) else table[kept]


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
        "point", "execution", "start", "trained", "teacher", "ffn", "learning_rate", "choices",
    ]  # fmt: skip
    return lost[columns].drop_duplicates(["grid", "hardware", "point"]).reset_index(drop=True)
