"""What the views of the suite `training_step` share: one GPU's rows, and whole pretrainings derived from step times."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd

from blast.experiment.comparison import missing
from blast.experiment.ratio import on_gpu
from blast.sparsity.config import SparsifyConfig
from blast.sparsity.schedule import target_sparsity
from paper_figures import _style as style
from paper_figures._kernels import block_label, by_size

SUITE = "training_step"
DENSE, OURS, MASKED = "dense_compiled", "ours", "masked_dense"
# What the paper says of pretraining as a whole.
PAPER_SPEED_UP = 1.11
# Of the derived pretraining: the schedule is the default one, and the mask is updated as the issue of record says.
HOLD, UPDATE_EVERY, SAMPLES = 0.2, 100, 500
GROWTH = ("union", "swap")
CASE = ["model", "block", "tokens"]


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
    """Model, block and tokens of each step that was timed, largest models first."""
    steps = rows[rows["metric"] == "step_time"]
    found = sorted({(row.model, row.block, int(row.tokens)) for row in steps.itertuples(index=False)})
    place = {model: number for number, model in enumerate(by_size(steps["model"]))}
    return sorted(found, key=lambda case: (place[case[0]], case[1:]))


def of_case(rows: pd.DataFrame, case: tuple[str, str, int]) -> pd.DataFrame:
    """The rows of one model, block and number of tokens."""
    same = (rows["model"] == case[0]) & (rows["block"] == case[1]) & (rows["tokens"] == case[2])
    return rows[same]


def values(rows: pd.DataFrame, metric: str, provider: str) -> dict[float, float]:
    """A metric of one case and provider by the sparsity of the point it was measured in."""
    found = rows[(rows["metric"] == metric) & (rows["provider"] == provider)]
    return found.drop_duplicates("sparsity").set_index("sparsity")["value"].sort_index().to_dict()


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

    def sparse_at(self, live: float) -> float:
        """A step with this share of blocks live: between the measured ones and beyond them along straight lines."""
        known = sorted((1 - sparsity, value) for sparsity, value in self.sparse.items())
        if len(known) == 1:
            return known[0][1]
        pairs = list(itertools.pairwise(known))
        (x0, y0), (x1, y1) = next((pair for pair in pairs if live <= pair[1][0]), pairs[-1])
        # Fewer blocks than measured: no faster than measured.
        return y0 + (y1 - y0) * max(0.0, live - x0) / (x1 - x0)


def step_times(rows: pd.DataFrame) -> StepTimes | None:
    """The step times of one case; None where dense or ours was not timed.

    Without a masked-dense timing a masked step is taken to be a dense one and a mask update to cost nothing.
    """
    dense, sparse = (values(rows, "step_time", provider) for provider in (DENSE, OURS))
    if not dense or not sparse:
        return None
    middle = float(pd.Series(dense).median())
    masked, update = values(rows, "step_time", MASKED), values(rows, "time_mask_update", MASKED)
    dearer = values(rows, "time_mask_update", OURS)
    return StepTimes(
        dense=middle,
        masked=float(pd.Series(masked).median()) if masked else middle,
        update=float(pd.Series(update).median()) if update else 0.0,
        sparse=sparse,
        sparse_update=float(pd.Series(dearer).median()) if dearer else None,
    )


def update_share(times: StepTimes, sparse: float) -> float:
    """What mask updates add to the time of such sparse steps, one in every `UPDATE_EVERY`."""
    whole = times.masked - sparse + times.update
    return (whole if times.sparse_update is None else times.sparse_update) / UPDATE_EVERY / sparse


class Pretraining(NamedTuple):
    """A whole run of as many steps as dense: how much faster, and the share of its steps run masked-dense."""

    speed_up: float
    masked_share: float


def pretraining(times: StepTimes, final: float, growth: str) -> Pretraining:
    """A whole run with the cubic schedule, at each step whichever of masked-dense and sparse is faster.

    Args:
        times: Of the steps.
        final: Sparsity at the end.
        growth: `swap`: 1 - s(t) of the blocks are live; `union`: up to twice that until the trim, which is assumed.
    """
    config = SparsifyConfig(sparsity=final, block=(64, 64), steps=SAMPLES, hold=HOLD)
    total = masked = 0.0
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
        total += took + (dearer / UPDATE_EVERY if growing else 0.0)
    return Pretraining(SAMPLES * times.dense / total, masked / SAMPLES)


def passed_at(times: StepTimes, growth: str, wanted: float = PAPER_SPEED_UP) -> float | None:
    """The smallest final sparsity with this speed-up, in whole percents and at most the highest measured; or None."""
    highest = round(100 * max(times.sparse))
    percents = (percent for percent in range(1, highest + 1) if pretraining(times, percent / 100, growth)[0] >= wanted)
    percent = next(percents, None)
    return None if percent is None else percent / 100


def case_label(case: tuple[str, str, int]) -> str:
    """`GPT-2 XL, block 64`."""
    return f"{style.model_label(case[0])}, block {block_label(case[1])}"


def lost_points(table: pd.DataFrame, shown: int = 4) -> str:
    """Names the points of the suite that failed or were not run, for the footer."""
    rows = missing(table[(table["suite"] == SUITE) & table["provider"].isna()])
    parts = []
    for status, lost in rows.groupby("status", sort=True):
        names = [f"{style.model_label(row.model)} {100 * row.sparsity:g} %" for row in lost.itertuples(index=False)]
        more = f" and {len(names) - shown} more" if len(names) > shown else ""
        parts.append(f"{str(status).capitalize()}: {', '.join(names[:shown])}{more}.")
    return " ".join(parts)


def why_empty(table: pd.DataFrame) -> str:
    """`failed` if every point of the suite failed, else `not run`."""
    return style.why_empty(table[table["suite"] == SUITE])


def panels(count: int, height: float, columns: int = 4, **more: Any) -> tuple[Any, list[Any]]:
    """A figure with so many panels, and the axes of these; places left over are hidden."""
    columns = min(columns, count)
    lines = -(-count // columns)
    figure = style.new_figure(style.DOUBLE if columns > 1 else style.COLUMN, height * lines + 0.6)
    axes = list(figure.subplots(lines, columns, squeeze=False, **more).flat)
    for place in axes[count:]:
        place.set_visible(False)
    return figure, axes[:count]
