"""How long runs train until they reach a validation loss: the time of training alone, evaluations left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from blast.experiment.records.table import one_machine

METHODS = ("dense", "blast", "rigl_swap")
CURVES = ("validation_loss", "training_time", "compile_time", "mask_update_time")


@dataclass(frozen=True)
class TimedRun:
    """Validation loss of one run over the seconds it had trained.

    Attributes:
        point: A row of its validation loss; what it is.
        seconds: Of training until each evaluation, ascending.
        losses: At each evaluation.
        compiling: How many of the seconds went into compiling; zeros where that was not recorded.
        updating: How many of them mask updates added; likewise.
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
        """Seconds of the whole run."""
        return self.seconds[-1]

    @property
    def running(self) -> tuple[float, ...]:
        """The seconds until each evaluation without compiling, which a cache of kernels may spare."""
        return tuple(whole - part for whole, part in zip(self.seconds, self.compiling, strict=True))

    @property
    def final(self) -> float:
        """Loss at the end."""
        return self.losses[-1]

    @property
    def update_share(self) -> float:
        """What mask updates added to the time of all steps, compiling left out."""
        return self.updating[-1] / (self.total - self.compiling[-1] - self.updating[-1])

    def time_to(self, loss: float) -> float | None:
        """Seconds until the loss was first this low; None if it never was."""
        return time_to(self.seconds, self.losses, loss)

    def time_running_to(self, loss: float) -> float | None:
        """The same without compiling."""
        return time_to(self.running, self.losses, loss)


def time_to(seconds: Sequence[float], losses: Sequence[float], loss: float) -> float | None:
    """When a curve is first as low as a loss, on the straight line from the evaluation before.

    Args:
        seconds: Ascending.
        losses: At these times.
        loss: To be reached.

    Returns:
        Seconds; those of the first evaluation if that is low enough already; None if none is.
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
    """Dense, BLaST and swap runs whose training was timed: a list for each grid, model and dataset, dense ones first.

    All runs of a list were trained on one machine. Runs without times are left out.
    """
    rows = table[(table["suite"] == "train") & (table["status"] == "ok") & table["method"].isin(METHODS)]
    rows = rows[rows["step"].notna() & rows["metric"].isin(CURVES)]
    # A machine without times does not push out one with them.
    timed = rows.loc[rows["metric"] == "training_time", ["point", "hardware"]].drop_duplicates()
    rows = one_machine(rows.merge(timed, on=["point", "hardware"]))
    groups = []
    for _, group in rows.groupby(["grid", "model", "dataset"], sort=True):
        order = ["method", "sparsity", "block", "seed", "execution", "point"]
        names = group.sort_values(order, key=_dense_first, kind="stable")["point"].drop_duplicates()
        runs = [_timed_run(group[group["point"] == name]) for name in names]
        groups.append([run for run in runs if run])
    return [group for group in groups if group]


def dense_of(run: TimedRun, group: Sequence[TimedRun]) -> TimedRun | None:
    """The dense run of a group that a pruned one is held against: its parent, else one of its seed."""
    dense = [other for other in group if other.point.method == "dense"]
    parents = [other for other in dense if other.point.point == run.point.parent]
    return next(iter(parents or [other for other in dense if other.point.seed == run.point.seed]), None)


def _dense_first(column: pd.Series) -> pd.Series:
    return column.map({name: place for place, name in enumerate(METHODS)}) if column.name == "method" else column


def _timed_run(rows: pd.DataFrame) -> TimedRun | None:
    curves = rows.pivot_table(index="step", columns="metric", values="value").sort_index()
    if not {"validation_loss", "training_time"} <= set(curves):
        return None
    curves = curves.reindex(columns=CURVES)
    # Exported rows keep the first where it changes alone.
    for name in CURVES[2:]:
        curves[name] = curves[name].ffill().fillna(0.0)
    curves = curves.dropna()
    if curves.empty:
        return None
    point = next(rows[rows["metric"] == "validation_loss"].itertuples(index=False))
    seconds, losses = tuple(curves["training_time"]), tuple(curves["validation_loss"])
    # Steps are counted from 0.
    steps = int(curves.index[-1]) + 1
    return TimedRun(point, seconds, losses, *(tuple(curves[name]) for name in CURVES[2:]), steps)
