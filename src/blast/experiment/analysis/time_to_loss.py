"""Training time that runs need to reach a validation loss. Time spent in evaluations is not counted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from blast.experiment.analysis.recipe import recipe_points
from blast.experiment.analysis.trials import chosen_trials
from blast.experiment.plan.grid import SMALL_DENSE
from blast.experiment.records.table import one_machine
from blast.sparsity.config import METHOD_DETAILS

METHODS = ("dense", *(name for name, method in METHOD_DETAILS.items() if method.finds_masks), SMALL_DENSE)
CURVES = ("validation_loss", "training_time", "compile_time", "mask_update_time")


@dataclass(frozen=True, eq=False)
class TimedRun:
    """Validation loss of one run by training time.

    Attributes:
        point: A row of its validation loss; it identifies the run.
        seconds: Training time until each evaluation, ascending.
        losses: Validation loss at each evaluation.
        compiling: The part of `seconds` that went into compiling; zeros if not recorded.
        updating: The part of `seconds` that mask updates added; zeros if not recorded.
        steps: Optimisation steps of the whole run.
    """

    point: Any
    seconds: tuple[float, ...]
    losses: tuple[float, ...]
    compiling: tuple[float, ...]
    updating: tuple[float, ...]
    steps: int

    @property
    def total(self) -> float:
        """Training time of the whole run, seconds."""
        return self.seconds[-1]

    @property
    def running(self) -> tuple[float, ...]:
        """Seconds until each evaluation without compile time, which a warm kernel cache saves."""
        return tuple(whole - part for whole, part in zip(self.seconds, self.compiling, strict=True))

    @property
    def final(self) -> float:
        """Loss at the end."""
        return self.losses[-1]

    @property
    def update_share(self) -> float:
        """Time that mask updates added, as a share of the other training time without compiling."""
        return self.updating[-1] / (self.total - self.compiling[-1] - self.updating[-1])

    def time_to(self, loss: float) -> float | None:
        """Seconds until the run reached a loss; None if it never did."""
        return time_to(self.seconds, self.losses, loss)

    def time_running_to(self, loss: float) -> float | None:
        """As `time_to`, without compile time."""
        return time_to(self.running, self.losses, loss)


def time_to(seconds: Sequence[float], losses: Sequence[float], loss: float) -> float | None:
    """Time at which a curve first reaches a loss, by linear interpolation between evaluations.

    Args:
        seconds: Time of each evaluation, ascending.
        losses: Loss at each evaluation.
        loss: The loss to reach.

    Returns:
        Seconds. The time of the first evaluation if that already reaches the loss; None if no evaluation does.
    """
    for place, value in enumerate(losses):
        if value <= loss:
            if place == 0:
                return seconds[0]
            before = losses[place - 1]
            share = (before - loss) / (before - value)
            return seconds[place - 1] + share * (seconds[place] - seconds[place - 1])
    return None


def timed_runs(table: pd.DataFrame) -> list[list[TimedRun]]:
    """Runs with recorded times: one list for each grid, model, dataset and start, dense runs first.

    All runs of a list come from one machine. Of trials of a learning rate the best are in it. Runs without times, with
    a teacher or with a lever (another variant than the recipe of its length) are left out.
    """
    table = chosen_trials(table)
    rows = table[(table["suite"] == "train") & (table["status"] == "ok") & table["method"].isin(METHODS)]
    rows = rows[rows["step"].notna() & rows["metric"].isin(CURVES)]
    # `one_machine` must not prefer a machine that recorded no times.
    timed = rows.loc[rows["metric"] == "training_time", ["point", "hardware"]].drop_duplicates()
    rows = one_machine(rows.merge(timed, on=["point", "hardware"]))
    groups = []
    starts = recipe_points(table)
    keys = list(zip(rows["grid"], rows["hardware"], rows["point"], strict=True))
    rows = rows.assign(start=[starts.get(key) for key in keys])
    rows = rows[rows["start"].notna()]
    for _, group in rows.groupby(["grid", "model", "dataset", "start"], sort=True):
        order = ["method", "sparsity", "block", "seed", "execution", "point"]
        named = group.drop_duplicates(["point", "metric"]).sort_values(order, key=_dense_first, kind="stable")
        firsts = {row.point: row for row in named.itertuples(index=False) if row.metric == "validation_loss"}
        curves = dict(iter(group[["point", "step", "metric", "value"]].groupby("point", sort=False)))
        runs = [_timed_run(curves[name], firsts[name]) for name in named["point"].drop_duplicates() if name in firsts]
        groups.append([run for run in runs if run])
    return [group for group in groups if group]


def reference_dense(group: Sequence[TimedRun]) -> TimedRun | None:
    """The dense run whose last loss the others have to reach: the one that most of them are compared with.

    Of several with as many, the longest; None if no run has a dense one.
    """
    compared = [dense_of(run, group) for run in group if run.point.method != "dense"]
    counts = {run: sum(run is other for other in compared) for run in group if run.point.method == "dense"}
    return max(counts, key=lambda run: (counts[run], run.steps), default=None) if any(counts.values()) else None


def dense_of(run: TimedRun, group: Sequence[TimedRun]) -> TimedRun | None:
    """The dense run to compare a pruned run with: its parent, else one of the same seed; None if there is neither.

    Of several of the same seed, one with as many steps comes first.
    """
    dense = [other for other in group if other.point.method == "dense"]
    parents = [other for other in dense if other.point.point == run.point.parent]
    seeds = sorted((other for other in dense if other.point.seed == run.point.seed), key=lambda d: d.steps != run.steps)
    return next(iter(parents or seeds), None)


def _dense_first(column: pd.Series) -> pd.Series:
    return column.map({name: place for place, name in enumerate(METHODS)}) if column.name == "method" else column


def _timed_run(rows: pd.DataFrame, point: Any) -> TimedRun | None:
    """The run of a point by its curves: rows of `step`, `metric` and `value`."""
    curves: dict[str, dict[int, float]] = {name: {} for name in CURVES}
    for step, metric, value in zip(rows["step"], rows["metric"], rows["value"], strict=True):
        if not math.isnan(value):
            curves[metric].setdefault(int(step), value)
    # Exported rows hold the last two only at the steps where they change.
    lines, compiling, updating = [], 0.0, 0.0
    for step in sorted(set().union(*curves.values())):
        loss, seconds, compiling, updating = (
            curves[name].get(step, before)
            for name, before in zip(CURVES, (None, None, compiling, updating), strict=True)
        )
        if loss is not None and seconds is not None:
            lines.append((step, seconds, loss, compiling, updating))
    if not lines:
        return None
    steps, *columns = zip(*lines, strict=True)
    # Steps are counted from 0.
    return TimedRun(point, *columns, steps=steps[-1] + 1)
