"""All results by architecture, dataset, method and sparsity: score with error, and loss relative to dense."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from blast.experiment.analysis.comparison import QUALITY, missing, summarise
from blast.experiment.analysis.recipe import variant_of
from blast.experiment.plan.rerun import rerun_of_grid
from paper_figures.views import _style as style
from paper_figures.views._labels import model_name
from paper_figures.views._write import RERUN

TITLE = "All results"
CATEGORY = "Quality"
SUITES = ("train",)
COLUMNS = (
    "grid", "hardware", "architecture", "dataset", "start", "trained", "metric", "task", "unit", "method", "variant",
    "teacher", "sparsity", "achieved_sparsity", "block", "ffn", "seeds", "n", "value", "standard_error", "seed_spread",
    "relative_loss_percent", "note", RERUN,
)  # fmt: skip
KEY = (
    "grid", "hardware", "architecture", "dataset", "start", "trained", "metric", "task", "method", "variant", "teacher",
    "sparsity", "block", "ffn", "note",
)  # fmt: skip
SHOWN_KEY = ("grid", "architecture", "dataset", "start", "metric", "method", "sparsity", "block", "note")
# Every score of quality, but `byte_perplexity`, which is 2 to the power of bits per byte.
METRICS = (*QUALITY, "acc_norm", "rouge_sum", "word_perplexity")
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
            "start": row.start, "trained": row.trained, "metric": row.metric, "task": row.task, "unit": row.unit,
            "method": row.method, "variant": variant_of(row.points[0]), "teacher": row.teacher,
            "sparsity": row.sparsity, "achieved_sparsity": row.achieved_sparsity, "block": row.block, "ffn": row.ffn,
            "seeds": row.seeds, "n": row.n,
            "value": row.value, "standard_error": row.error,
            "seed_spread": row.highest - row.lowest if row.seeds > 1 else math.nan,
            "relative_loss_percent": row.relative, "note": _note(row), RERUN: rerun_of_grid(row.grid, row.points),
        }
        for row in summarise(table, METRICS).itertuples(index=False)
    ]  # fmt: skip
    lines += [
        {
            "grid": row.grid, "hardware": row.hardware, "architecture": row.model, "dataset": row.dataset,
            "start": row.start, "trained": row.trained, "method": row.method, "variant": variant_of(row.point),
            "teacher": row.teacher, "sparsity": row.sparsity, "block": row.block, "ffn": row.ffn,
            "note": f"seed {row.seed} {row.status}" + (f": {row.cause}" if row.status == "failed" else ""),
            RERUN: rerun_of_grid(row.grid, [row.point]),
        }
        for row in missing(table[table["suite"] == "train"]).itertuples(index=False)
    ]  # fmt: skip
    if not lines:
        lines = [{"note": "not run"}]
    frame = pd.DataFrame(lines, columns=list(COLUMNS))
    frame["place"] = frame["method"].map(ORDER).fillna(len(ORDER))
    frame["start"] = frame["start"].where(frame["start"].notna() | frame["architecture"].isna(), "scratch")
    order = [
        "grid", "architecture", "dataset", "start", "trained", "metric", "task", "place", "sparsity", "block", "variant"
    ]  # fmt: skip
    frame = frame.sort_values(order, kind="stable", na_position="last", ignore_index=True).drop(columns="place")
    return frame.astype({"seeds": "Int64", "n": "Int64", "ffn": "Int64", "trained": "Int64"})


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
            "grid": row.grid if isinstance(row.grid, str) else "",
            "architecture": style.model_label(row.architecture) if isinstance(row.architecture, str) else "–",
            "dataset": style.dataset_label(row.dataset),
            "start": row.start if isinstance(row.start, str) else "",
            "metric": style.metric_label(row.metric, row.task) if known else "–",
            "method": model_name(row._asdict()) if isinstance(row.method, str) else "",
            "sparsity": "" if math.isnan(row.sparsity) else f"{100 * row.sparsity:g} %",
            "block": str(row.block).replace("x", " × ") if isinstance(row.block, str) else "",
            "seeds": row.seeds,
            "value": _score(row),
            "relative loss": "" if math.isnan(row.relative_loss_percent) else f"{row.relative_loss_percent:+.2f} %",
            "note": row.note,
        })  # fmt: skip
    return pd.DataFrame(lines)
