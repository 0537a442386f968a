"""All results by architecture, dataset, method and sparsity: score with error, and loss relative to dense."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from blast.experiment.analysis.comparison import missing, summarise
from blast.experiment.plan.rerun import rerun_of_grid
from paper_figures import _style as style
from paper_figures._write import RERUN

TITLE = "All results"
SUITES = ("train",)
COLUMNS = (
    "grid", "hardware", "architecture", "dataset", "metric", "task", "unit", "method", "sparsity", "achieved_sparsity",
    "block", "seeds", "n", "value", "standard_error", "seed_spread", "relative_loss_percent", "note",
    RERUN,
)  # fmt: skip
ORDER = {name: place for place, name in enumerate(style.METHODS)}


def _note(row: Any) -> str:
    if row.at_chance:
        return "at chance"
    if row.within_noise is True:
        return "within noise"
    if row.method != "dense" and math.isnan(row.relative):
        return "dense at chance" if not math.isnan(row.dense) else "dense not run"
    return ""


def rows(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each configuration and metric; points that failed or were not run have a note instead of a value."""
    lines = [
        {
            "grid": row.grid, "hardware": row.hardware, "architecture": row.model, "dataset": row.dataset,
            "metric": row.metric, "task": row.task, "unit": row.unit, "method": row.method, "sparsity": row.sparsity,
            "achieved_sparsity": row.achieved_sparsity, "block": row.block, "seeds": row.seeds, "n": row.n,
            "value": row.value, "standard_error": row.error,
            "seed_spread": row.highest - row.lowest if row.seeds > 1 else math.nan,
            "relative_loss_percent": row.relative, "note": _note(row), RERUN: rerun_of_grid(row.grid, row.points),
        }
        for row in summarise(table).itertuples(index=False)
    ]  # fmt: skip
    lines += [
        {
            "grid": row.grid, "hardware": row.hardware, "architecture": row.model, "dataset": row.dataset,
            "method": row.method, "sparsity": row.sparsity, "block": row.block,
            "note": f"seed {row.seed} {row.status}" + (f": {row.cause}" if row.status == "failed" else ""),
            RERUN: rerun_of_grid(row.grid, [row.point]),
        }
        for row in missing(table[table["suite"] == "train"]).itertuples(index=False)
    ]  # fmt: skip
    if not lines:
        lines = [{"note": "not run"}]
    frame = pd.DataFrame(lines, columns=list(COLUMNS))
    frame["place"] = frame["method"].map(ORDER).fillna(len(ORDER))
    order = ["grid", "architecture", "dataset", "metric", "task", "place", "sparsity", "block"]
    frame = frame.sort_values(order, kind="stable", na_position="last", ignore_index=True).drop(columns="place")
    return frame.astype({"seeds": "Int64", "n": "Int64"})


def _score(row: Any) -> str:
    if math.isnan(row.value):
        return "–"
    factor = style.in_percent(row.metric)
    digits = 2 if factor == 100 else 3
    error = "" if math.isnan(row.standard_error) else f" ± {factor * row.standard_error:.{digits}f}"
    return f"{factor * row.value:.{digits}f}{error}"


def printed(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows as they are printed."""
    lines = []
    for row in frame.itertuples(index=False):
        known = isinstance(row.metric, str)
        lines.append({
            "architecture": style.model_label(row.architecture) if isinstance(row.architecture, str) else "–",
            "dataset": style.dataset_label(row.dataset),
            "metric": style.metric_label(row.metric, row.task) if known else "–",
            "method": style.method_label(row.method) if isinstance(row.method, str) else "",
            "sparsity": "" if math.isnan(row.sparsity) else f"{100 * row.sparsity:g} %",
            "block": str(row.block).replace("x", " × ") if isinstance(row.block, str) else "",
            "seeds": row.seeds,
            "value": _score(row),
            "relative loss": "" if math.isnan(row.relative_loss_percent) else f"{row.relative_loss_percent:+.2f} %",
            "note": row.note,
        })  # fmt: skip
    return pd.DataFrame(lines)
