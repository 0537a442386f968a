"""What each lever is worth: loss with it against the same recipe without it, on held-out and on training data."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from blast.experiment.analysis.levers import SPARSITIES, Effect, Lever, levers
from blast.experiment.plan.rerun import rerun_of_grid
from paper_figures.views import _style as style
from paper_figures.views._write import RERUN

TITLE = "Single levers"
CATEGORY = "Quality"
SUITES = ("train",)
PLACE = ("grid", "hardware", "model", "dataset", "start", "trained", "block")
EFFECT = ("held_out", "low", "high", "training", "seeds", "seeds_without", "status")
COLUMNS = (
    *PLACE, "lever", "value", "without", "base",
    *(f"{name}_s{100 * sparsity:g}" for sparsity in SPARSITIES for name in EFFECT),
    "status", RERUN,
)  # fmt: skip
KEY = ("grid", "hardware", "model", "dataset", "start", "trained", "block", "base", "lever", "value", "without")
SHOWN_KEY = ("model", "data", "lever", "tried on")


def _cells(sparsity: float, effect: Effect | None) -> dict[str, Any]:
    found = effect or Effect(math.nan, math.nan, math.nan, math.nan, (0, 0), "not run")
    values = (found.held_out, found.low, found.high, found.training, *found.seeds, found.status)
    return {f"{name}_s{100 * sparsity:g}": value for name, value in zip(EFFECT, values, strict=True)}


def _status(lever: Lever) -> str:
    """`ok`, or where it was not run: a lever needs numbers at two sparsities."""
    if lever.place is None or len(lever.lacking) == len(SPARSITIES):
        return "not run"
    places = " and ".join(f"{100 * sparsity:g} %" for sparsity in lever.lacking)
    return f"not run at {places}" if places else "ok"


def rows(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each lever; percent of the score without it, positive means that the lever makes it worse."""
    lines = []
    for lever in levers(table):
        line = {**(lever.place or {}), "lever": lever.label, "value": lever.value, "without": lever.without,
                "base": lever.base, "status": _status(lever)}  # fmt: skip
        for sparsity in SPARSITIES:
            line |= _cells(sparsity, lever.effects.get(sparsity))
        points = dict.fromkeys(name for effect in lever.effects.values() for name in effect.points)
        if points:
            line[RERUN] = rerun_of_grid(line["grid"], list(points))
        lines.append(line)
    return pd.DataFrame(lines, columns=list(COLUMNS)).astype({"trained": "Int64"})


def _change(row: dict[str, Any], sparsity: float, name: str) -> str:
    at = f"_s{100 * sparsity:g}"
    if pd.isna(row[name + at]):
        return row["status" + at] if row["status" + at] != "ok" else "–"
    low, high = row["low" + at], row["high" + at]
    spread = "" if name == "training" or pd.isna(low) else f" ({low:+.2f} to {high:+.2f})"
    return f"{row[name + at]:+.2f} %{spread}"


def printed(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows as they are printed."""
    lines = []
    for row in frame.to_dict("records"):
        known = isinstance(row["model"], str)
        line = {
            "model": style.model_label(row["model"]) if known else "–",
            "data": style.dataset_label(row["dataset"]),
            "lever": row["lever"] + (f": {row['value']} instead of {row['without']}" if row["value"] else ""),
            "tried on": style.method_label(row["base"]) if row["base"] else "",
        }
        for sparsity in SPARSITIES:
            line[f"{100 * sparsity:g} %: held-out"] = _change(row, sparsity, "held_out")
            line[f"{100 * sparsity:g} %: training"] = _change(row, sparsity, "training")
            seeds = row[f"seeds_s{100 * sparsity:g}"], row[f"seeds_without_s{100 * sparsity:g}"]
            line[f"{100 * sparsity:g} %: seeds"] = f"{seeds[0]}, {seeds[1]}" if all(seeds) else ""
        lines.append(line | {"status": row["status"]})
    return pd.DataFrame(lines)
