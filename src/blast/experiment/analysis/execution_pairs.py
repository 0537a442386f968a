"""Pairs of runs that differ in `execution` alone: one stays masked-dense, the other switches to sparse execution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class CurvePair:
    """One curve of both runs, at the steps that both recorded.

    Attributes:
        steps: Counted from 0, ascending.
        masked: Values of the masked-dense run.
        switching: Values of the run that switches to sparse.
    """

    steps: list[int]
    masked: list[float]
    switching: list[float]

    @property
    def gaps(self) -> list[float]:
        """Switching minus masked."""
        return [ours - theirs for ours, theirs in zip(self.switching, self.masked, strict=True)]

    def largest_gap(self, first: int, last: float = float("inf")) -> float | None:
        """The largest absolute gap in steps `[first, last)`; None if there is no such step."""
        found = [abs(gap) for step, gap in zip(self.steps, self.gaps, strict=True) if first <= step < last]
        return max(found) if found else None


@dataclass(frozen=True)
class ExecutionPair:
    """Two runs on one machine that have the same settings except `execution`.

    Attributes:
        point: Any row of the switching run; it identifies the pair.
        rows: All rows of both runs, with their curves.
        first_sparse_step: First recorded step with sparse execution; None if there is none.
        state_recorded: Whether the switching run recorded its execution state.
    """

    point: Any
    rows: pd.DataFrame
    first_sparse_step: int | None
    state_recorded: bool

    def curves(self, metric: str) -> CurvePair:
        """The curve of a metric in both runs; empty if one of them lacks it."""
        curves = self.rows[self.rows["metric"] == metric].pivot_table(index="step", columns="point", values="value")
        masked = [name for name in curves if name != self.point.point]
        if len(masked) != 1 or self.point.point not in curves:
            return CurvePair([], [], [])
        both = curves.dropna().sort_index()
        return CurvePair(both.index.astype(int).tolist(), both[masked[0]].tolist(), both[self.point.point].tolist())


def execution_pairs(table: pd.DataFrame) -> list[ExecutionPair]:
    """All pairs of a run with `execution: masked` and one without, on one machine, by model and dataset."""
    rows = table[(table["suite"] == "train") & (table["status"] == "ok") & table["step"].notna()]
    rows = rows[rows["same_but_execution"].notna()]
    pairs = []
    keys = ["grid", "hardware", "model", "dataset", "same_but_execution"]
    for _, group in rows.groupby(keys, sort=True):
        masked = group[group["execution"] == "masked"]
        for _, switching in group[group["execution"] != "masked"].groupby("execution", sort=True):
            if masked.empty:
                continue
            state = switching[switching["metric"] == "sparse_execution"].sort_values("step")
            sparse = state.loc[state["value"] > 0, "step"]
            pairs.append(ExecutionPair(
                point=next(switching.itertuples(index=False)),
                rows=pd.concat([masked, switching]),
                first_sparse_step=int(sparse.iloc[0]) if len(sparse) else None,
                state_recorded=len(state) > 0,
            ))  # fmt: skip
    return pairs
