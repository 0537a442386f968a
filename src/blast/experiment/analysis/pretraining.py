"""Speed-up of a whole pretraining run over dense, derived from the step times of the suite `training_step`.

Both runs have T steps. The pruned run follows the cubic schedule, and each step uses the faster of masked-dense and
sparse execution: `speed-up = T · t_dense / Σ (min(t_masked, t_sparse(l(t))) + u(t))`. The share of live blocks is
`l(t) = 1 - s(t)` with `swap`. With `union` it is up to twice that until the masks are trimmed. `u(t)` is a hundredth of
the time that a mask update adds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd

from blast.experiment.analysis.ratio import on_gpu
from blast.sparsity.config import SparsifyConfig
from blast.sparsity.schedule import target_sparsity

SUITE = "training_step"
DENSE, OURS, MASKED = "dense_compiled", "ours", "masked_dense"
# The paper's speed-up of pretraining.
PAPER_SPEED_UP = 1.11
# The default schedule, with a mask update in every hundredth step, evaluated at SAMPLES steps.
HOLD, UPDATE_EVERY, SAMPLES = 0.2, 100, 500
# Growth mode, and the method that uses it.
GROWTH = {"swap": "rigl_swap", "union": "blast"}
# Quantile columns of (dense, ours) for the lowest and the highest speed-up.
SLOWEST, FASTEST = ("low", "high"), ("high", "low")


def step_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the suite from one GPU: the one with most local rows, else with most rows.

    If a step was recorded with several settings, the plain point (fused, uniform masks) comes first.
    """
    rows = table[table["suite"] == SUITE]
    on_one = pd.Series([on_gpu(row) for row in rows.itertuples(index=False)], index=rows.index, dtype=bool)
    timed = rows[(rows["status"] == "ok") & on_one & rows["metric"].notna()]
    if timed.empty:
        return rows.iloc[:0]
    local = (timed["source"] == "local").groupby(timed["hardware"]).sum()
    ranked = pd.DataFrame({"local": local, "rows": timed.groupby("hardware").size()}).reset_index()
    best = ranked.sort_values(["local", "rows", "hardware"], ascending=[False, False, True]).iloc[0]["hardware"]
    # A variant lengthens the id, so the shortest id is the plain point.
    found = timed[timed["hardware"] == best]
    return found.assign(length=found["point"].str.len()).sort_values("length", kind="stable").drop(columns="length")


def cases(rows: pd.DataFrame) -> list[tuple[str, str, int]]:
    """Model, block and tokens of each timed step."""
    steps = rows[rows["metric"] == "step_time"]
    return sorted({(row.model, row.block, int(row.tokens)) for row in steps.itertuples(index=False)})


def of_case(rows: pd.DataFrame, case: tuple[str, str, int]) -> pd.DataFrame:
    """The rows of one model, block and number of tokens."""
    same = (rows["model"] == case[0]) & (rows["block"] == case[1]) & (rows["tokens"] == case[2])
    return rows[same]


def values(rows: pd.DataFrame, metric: str, provider: str, column: str = "value") -> dict[float, float]:
    """A metric of one case and provider, or a quantile of it, by the sparsity of the point."""
    # The plain point comes first and counts. A loop over some hundred rows is faster than a chain of frames.
    known: dict[float, float] = {}
    for *names, sparsity, value in zip(
        *(rows[name] for name in ("metric", "provider", "sparsity", column)), strict=True
    ):
        if names == [metric, provider]:
            known.setdefault(sparsity, value)
    return dict(sorted(known.items()))


class StepTimes(NamedTuple):
    """Step times of one case in milliseconds. All but `sparse` are medians over all points.

    Attributes:
        dense: A dense step.
        masked: A masked-dense step without a mask update.
        update: Time that a mask update adds to a masked-dense step.
        sparse: A sparse step, by sparsity.
        sparse_update: Time that a mask update adds to a sparse step. None if not measured: such a step is then taken
            to be as slow as a masked-dense step with an update.
    """

    dense: float
    masked: float
    update: float
    sparse: Mapping[float, float]
    sparse_update: float | None = None

    @property
    def spanned(self) -> bool:
        """Whether steps were measured at two sparsities or more, as interpolation needs."""
        return len(self.sparse) > 1

    def sparse_at(self, live: np.ndarray | float) -> np.ndarray:
        """Times of sparse steps with these shares of live blocks, by linear inter- and extrapolation."""
        shares, known = np.array(sorted((1 - sparsity, value) for sparsity, value in self.sparse.items())).T
        if len(known) == 1:
            return np.full(np.shape(live), known[0])
        low = np.clip(np.searchsorted(shares, live) - 1, 0, len(known) - 2)
        # Below the fewest measured blocks, assume no further gain.
        beyond = np.maximum(0.0, live - shares[low])
        return known[low] + (known[low + 1] - known[low]) * beyond / (shares[low + 1] - shares[low])


def step_times(rows: pd.DataFrame, columns: tuple[str, str] = ("value", "value")) -> StepTimes | None:
    """The step times of one case; None if dense or ours was not timed.

    If masked-dense was not timed, a masked-dense step is taken to be as fast as a dense one and its updates to be free.

    Args:
        rows: From `of_case`.
        columns: Column to read (`value`, `low` or `high`): first for dense, second for masked-dense and ours. Mask
            updates without quantiles are read from `value`.
    """
    dense = values(rows, "step_time", DENSE, columns[0])
    sparse, masked = (values(rows, "step_time", provider, columns[1]) for provider in (OURS, MASKED))
    if not dense or not sparse:
        return None
    middle = float(pd.Series(dense).median())
    update, sparse_update = (_updates(rows, provider, columns[1]) for provider in (MASKED, OURS))
    return StepTimes(
        dense=middle,
        masked=float(pd.Series(masked).median()) if masked else middle,
        update=0.0 if update is None else update,
        sparse=sparse,
        sparse_update=sparse_update,
    )


def _updates(rows: pd.DataFrame, provider: str, column: str) -> float | None:
    """Time that a mask update adds, the median over all points; None if it was not timed."""
    timed, known = (pd.Series(values(rows, "time_mask_update", provider, name)) for name in (column, "value"))
    return float(timed.fillna(known).median()) if len(known) else None


class WholeRun(NamedTuple):
    """A pruned run with as many steps as dense.

    Attributes:
        speed_up: Time of the dense run divided by its time.
        masked_share: Share of its steps that run masked-dense.
        update_share: Time that mask updates add, divided by the time of all steps without them.
    """

    speed_up: float
    masked_share: float
    update_share: float


def whole_run(times: StepTimes, final: float, growth: str) -> WholeRun:
    """A run with the cubic schedule, where each step uses the faster of masked-dense and sparse execution.

    Args:
        times: Step times of the case.
        final: Final sparsity.
        growth: `swap`: 1 - s(t) of the blocks are live. `union`: up to twice that until the masks are trimmed; twice is
            assumed, the slowest case.
    """
    live, growing = _schedule(final)
    if growth == "union":
        live = np.where(growing, np.minimum(1.0, 2 * live), live)
    sparse = times.sparse_at(live)
    faster = sparse < times.masked
    step_ms = np.where(faster, sparse, times.masked)
    # An update needs the dense gradient: at worst its step runs masked-dense.
    worst = times.masked - sparse + times.update
    of_sparse = worst if times.sparse_update is None else times.sparse_update
    update_ms = np.where(faster, of_sparse, times.update)
    total, added = float(step_ms.sum()), float(update_ms[growing].sum()) / UPDATE_EVERY
    masked = int(np.sum(times.masked <= sparse))
    return WholeRun(SAMPLES * times.dense / (total + added), masked / SAMPLES, added / total)


def _schedule(final: float) -> tuple[np.ndarray, np.ndarray]:
    """By step, the share of live blocks and whether masks still change."""
    reached, growing = _reached()
    return 1 - final * reached, growing


@cache
def _reached() -> tuple[np.ndarray, np.ndarray]:
    """By step, the share of the final sparsity that is reached, the same for all, and whether masks still change."""
    config = SparsifyConfig(sparsity=0.5, block=(64, 64), steps=SAMPLES, hold=HOLD)
    steps = range(SAMPLES)
    reached = np.array([target_sparsity(config, step) / config.sparsity for step in steps])
    return reached, np.array([step < config.final_step for step in steps])


def interval(rows: pd.DataFrame, final: float, growth: str) -> tuple[float, float]:
    """Lowest and highest speed-up of a run, from the quantiles of the step times of one case.

    Args:
        rows: From `of_case`.
        final: Final sparsity.
        growth: One of `GROWTH`.

    Returns:
        Lowest and highest; both NaN if a step time has no quantiles.
    """
    ends = []
    for columns in (SLOWEST, FASTEST):
        times = step_times(rows, columns)
        if times is None or any(math.isnan(value) for value in (times.dense, times.masked, *times.sparse.values())):
            return math.nan, math.nan
        ends.append(whole_run(times, final, growth).speed_up)
    return ends[0], ends[1]


def passed_at(times: StepTimes, growth: str, wanted: float = PAPER_SPEED_UP) -> float | None:
    """The smallest final sparsity, in whole percents, with this speed-up; None if no measured sparsity reaches it."""
    highest = round(100 * max(times.sparse))
    percents = (percent for percent in range(1, highest + 1) if whole_run(times, percent / 100, growth)[0] >= wanted)
    percent = next(percents, None)
    return None if percent is None else percent / 100
