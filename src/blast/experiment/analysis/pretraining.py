"""Pretraining as a whole: how much faster than dense, derived from the step times of the suite `training_step`.

As many steps as dense, with the cubic schedule; at each step whichever of masked-dense and sparse is faster:
`speed-up = T · t_dense / Σ (min(t_masked, t_sparse(l(t))) + u(t))`. The share of live blocks is `l(t) = 1 - s(t)` with
`swap`, and with `union` up to twice that until the masks are trimmed. `u(t)` is a hundredth of what a mask update adds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd

from blast.experiment.analysis.ratio import on_gpu
from blast.sparsity.config import SparsifyConfig
from blast.sparsity.schedule import target_sparsity

SUITE = "training_step"
DENSE, OURS, MASKED = "dense_compiled", "ours", "masked_dense"
# What the paper says of pretraining as a whole.
PAPER_SPEED_UP = 1.11
# The schedule is the default one, with a mask update in every hundredth step.
HOLD, UPDATE_EVERY, SAMPLES = 0.2, 100, 500
# How blocks grow, and the method of that name.
GROWTH = {"swap": "rigl_swap", "union": "blast"}
# Columns of dense and of ours that make a run as slow, and as fast, as the quantiles of its timings allow.
SLOWEST, FASTEST = ("low", "high"), ("high", "low")


def step_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the suite measured on the GPU that has most of them, local ones first; never two machines.

    Where one step was recorded with several settings, the plain points (fused, uniform masks) come first.
    """
    rows = table[table["suite"] == SUITE]
    on_one = pd.Series([on_gpu(row) for row in rows.itertuples(index=False)], index=rows.index, dtype=bool)
    timed = rows[(rows["status"] == "ok") & on_one & rows["metric"].notna()]
    if timed.empty:
        return rows.iloc[:0]
    local = (timed["source"] == "local").groupby(timed["hardware"]).sum()
    ranked = pd.DataFrame({"local": local, "rows": timed.groupby("hardware").size()}).reset_index()
    best = ranked.sort_values(["local", "rows", "hardware"], ascending=[False, False, True]).iloc[0]["hardware"]
    # The shortest id is the point without a variant.
    found = timed[timed["hardware"] == best]
    return found.assign(length=found["point"].str.len()).sort_values("length", kind="stable").drop(columns="length")


def cases(rows: pd.DataFrame) -> list[tuple[str, str, int]]:
    """Model, block and tokens of each step that was timed."""
    steps = rows[rows["metric"] == "step_time"]
    return sorted({(row.model, row.block, int(row.tokens)) for row in steps.itertuples(index=False)})


def of_case(rows: pd.DataFrame, case: tuple[str, str, int]) -> pd.DataFrame:
    """The rows of one model, block and number of tokens."""
    same = (rows["model"] == case[0]) & (rows["block"] == case[1]) & (rows["tokens"] == case[2])
    return rows[same]


def values(rows: pd.DataFrame, metric: str, provider: str, column: str = "value") -> dict[float, float]:
    """A metric of one case and provider, or one of its quantiles, by the sparsity of the point it was measured in."""
    found = rows[(rows["metric"] == metric) & (rows["provider"] == provider)]
    return found.drop_duplicates("sparsity").set_index("sparsity")[column].sort_index().to_dict()


class StepTimes(NamedTuple):
    """Milliseconds of one case; `sparse` by the sparsity of a point, the others are medians over all points.

    Attributes:
        dense: A dense step.
        masked: A masked-dense step without a mask update.
        update: What a mask update adds to it.
        sparse: Steps in the sparse state.
        sparse_update: What a mask update adds to one; None: what makes it a masked-dense step with an update.
    """

    dense: float
    masked: float
    update: float
    sparse: Mapping[float, float]
    sparse_update: float | None = None

    @property
    def spanned(self) -> bool:
        """Whether steps of two sparsities were measured: what lies between, and so a whole run, follows from them."""
        return len(self.sparse) > 1

    def sparse_at(self, live: float) -> float:
        """A step with this share of blocks live: between the measured ones and beyond them along straight lines."""
        known = sorted((1 - sparsity, value) for sparsity, value in self.sparse.items())
        if len(known) == 1:
            return known[0][1]
        pairs = list(itertools.pairwise(known))
        (x0, y0), (x1, y1) = next((pair for pair in pairs if live <= pair[1][0]), pairs[-1])
        # Fewer blocks than measured: no faster than measured.
        return y0 + (y1 - y0) * max(0.0, live - x0) / (x1 - x0)


def step_times(rows: pd.DataFrame, columns: tuple[str, str] = ("value", "value")) -> StepTimes | None:
    """The step times of one case; None where dense or ours was not timed.

    Without a masked-dense timing a masked step is taken to be a dense one and a mask update to cost nothing.

    Args:
        rows: As `of_case` gives them.
        columns: Of dense, and of ours and masked-dense with their mask updates: `value`, `low` or `high`. Mask updates
            that were recorded without quantiles are taken as they are.
    """
    dense = values(rows, "step_time", DENSE, columns[0])
    sparse, masked = (values(rows, "step_time", provider, columns[1]) for provider in (OURS, MASKED))
    if not dense or not sparse:
        return None
    middle = float(pd.Series(dense).median())
    update, dearer = (_updates(rows, provider, columns[1]) for provider in (MASKED, OURS))
    return StepTimes(
        dense=middle,
        masked=float(pd.Series(masked).median()) if masked else middle,
        update=0.0 if update is None else update,
        sparse=sparse,
        sparse_update=dearer,
    )


def _updates(rows: pd.DataFrame, provider: str, column: str) -> float | None:
    """What a mask update adds in one state, the median over all points; None where it was not timed."""
    timed, known = (pd.Series(values(rows, "time_mask_update", provider, name)) for name in (column, "value"))
    return float(timed.fillna(known).median()) if len(known) else None


class WholeRun(NamedTuple):
    """A whole run of as many steps as dense.

    Attributes:
        speed_up: How much faster it is.
        masked_share: The share of its steps run masked-dense.
        update_share: What mask updates add to the time of its steps.
    """

    speed_up: float
    masked_share: float
    update_share: float


def whole_run(times: StepTimes, final: float, growth: str) -> WholeRun:
    """A whole run with the cubic schedule, at each step whichever of masked-dense and sparse is faster.

    Args:
        times: Of the steps.
        final: Sparsity at the end.
        growth: `swap`: 1 - s(t) of the blocks are live; `union`: up to twice that until the trim, which is assumed.
    """
    config = SparsifyConfig(sparsity=final, block=(64, 64), steps=SAMPLES, hold=HOLD)
    total = masked = added = 0.0
    for step in range(SAMPLES):
        live = 1 - target_sparsity(config, step)
        growing = step < config.final_step
        if growth == "union" and growing:
            live = min(1.0, 2 * live)
        sparse = times.sparse_at(live)
        masked += times.masked <= sparse
        took, dearer = times.masked, times.update
        if sparse < took:
            # A mask update needs the dense gradient: its step is at worst a masked-dense one.
            whole = times.masked - sparse + times.update
            took, dearer = sparse, whole if times.sparse_update is None else times.sparse_update
        total += took
        added += dearer / UPDATE_EVERY if growing else 0.0
    return WholeRun(SAMPLES * times.dense / (total + added), masked / SAMPLES, added / total)


def interval(rows: pd.DataFrame, final: float, growth: str) -> tuple[float, float]:
    """Lowest and highest speed-up of a whole run that the quantiles of the step times of one case allow.

    Args:
        rows: As `of_case` gives them.
        final: Sparsity at the end.
        growth: One of `GROWTH`.

    Returns:
        NaN twice where a step time comes without quantiles.
    """
    ends = []
    for columns in (SLOWEST, FASTEST):
        times = step_times(rows, columns)
        if times is None or any(math.isnan(value) for value in (times.dense, times.masked, *times.sparse.values())):
            return math.nan, math.nan
        ends.append(whole_run(times, final, growth).speed_up)
    return ends[0], ends[1]


def passed_at(times: StepTimes, growth: str, wanted: float = PAPER_SPEED_UP) -> float | None:
    """The smallest final sparsity with this speed-up, in whole percents and at most the highest measured; or None."""
    highest = round(100 * max(times.sparse))
    percents = (percent for percent in range(1, highest + 1) if whole_run(times, percent / 100, growth)[0] >= wanted)
    percent = next(percents, None)
    return None if percent is None else percent / 100
