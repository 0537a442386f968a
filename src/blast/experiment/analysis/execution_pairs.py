"""Pairs of runs that differ in `execution` alone: one stays masked-dense, the other goes over to the sparse state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class Difference:
    """A curve of both runs at the steps that both have, and what the switching run lies above the masked one.

    Attributes:
        steps: Counted from 0, ascending.
        masked: Values of the run that stays masked.
        switching: Values of the run that switches.
    """

    steps: list[int]
    masked: list[float]
    switching: list[float]

    @property
    def gaps(self) -> list[float]:
        """Switching less masked."""
        return [ours - theirs for ours, theirs in zip(self.switching, self.masked, strict=True)]

    def largest(self, first: int, last: float = float("inf")) -> float | None:
        """The largest absolute gap from step `first` up to but not including `last`; None without such a step."""
        found = [abs(gap) for step, gap in zip(self.steps, self.gaps, strict=True) if first <= step < last]
        return max(found) if found else None


@dataclass(frozen=True)
class SwitchPair:
    """Two runs on one machine with the same settings but for `execution`.

    Attributes:
        point: Any row of the run that switches; what both are.
        rows: All rows of both, with the recorded curves.
        switched: The first step recorded in the sparse state; None if it was never in it.
        known: Whether the state was recorded.
    """

    point: Any
    rows: pd.DataFrame
    switched: int | None
    known: bool

    def difference(self, metric: str) -> Difference:
        """A curve of both runs, at the steps that both recorded."""
        curves = self.rows[self.rows["metric"] == metric].pivot_table(index="step", columns="point", values="value")
        masked = [name for name in curves if name != self.point.point]
        if len(masked) != 1 or self.point.point not in curves:
            return Difference([], [], [])
        both = curves.dropna().sort_index()
        return Difference(
            both.index.astype(int).tolist(), both[masked[0]].tolist(), both[self.point.point].tolist()
        )  # fmt: skip


def switch_pairs(table: pd.DataFrame) -> list[SwitchPair]:
    """Every pair of a run with `execution: masked` and one without, on the same machine, by model and dataset."""
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
            pairs.append(SwitchPair(
                point=next(switching.itertuples(index=False)),
                rows=pd.concat([masked, switching]),
                switched=int(sparse.iloc[0]) if len(sparse) else None,
                known=len(state) > 0,
            ))  # fmt: skip
    return pairs
