"""Measured times of trained models: of a training step, and of a token while lm-eval's requests are scored."""

from __future__ import annotations

from typing import Any

import pandas as pd

from blast.experiment.records.rows import SCORING_RATE

Place = tuple[Any, Any, Any]


def step_times(table: pd.DataFrame) -> dict[Place, float]:
    """Milliseconds of a training step by grid, machine and point: the mean over the whole run, without compiling.

    Mask updates, and the steps before the switch to sparse execution, are part of it; evaluations are not.
    """
    rows = table[(table["suite"] == "train") & (table["status"] == "ok") & table["step"].notna()]
    rows = rows[rows["metric"].isin(["training_time", "compile_time"])].sort_values("step", kind="stable")
    last = rows.drop_duplicates(["grid", "hardware", "point", "metric"], keep="last")
    found: dict[Place, float] = {}
    compiling: dict[Place, float] = {}
    steps: dict[Place, int] = {}
    for row in last.itertuples(index=False):
        place = row.grid, row.hardware, row.point
        (found if row.metric == "training_time" else compiling)[place] = row.value
        if row.metric == "training_time":
            # Steps are counted from 0.
            steps[place] = int(row.step) + 1
    return {place: 1000 * (whole - compiling.get(place, 0.0)) / steps[place] for place, whole in found.items()}


def token_times(table: pd.DataFrame) -> dict[Place, float]:
    """Microseconds of a token by grid, machine and point, while the model read lm-eval's requests in batches."""
    rows = table[(table["suite"] == "train") & (table["status"] == "ok") & (table["metric"] == SCORING_RATE)]
    return {(row.grid, row.hardware, row.point): 1e6 / row.value for row in rows.itertuples(index=False) if row.value}


def of_configurations(scores: pd.DataFrame, times: dict[Place, float]) -> list[float]:
    """The mean time of each configuration over the points that have one; NaN without any.

    Args:
        scores: Rows of `comparison.summarise`.
        times: By grid, machine and point.
    """
    found = []
    for row in scores.itertuples(index=False):
        known = [times[place] for point in row.points if (place := (row.grid, row.hardware, point)) in times]
        found.append(sum(known) / len(known) if known else float("nan"))
    return found
