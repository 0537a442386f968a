"""Training time of dense and pruned runs: for all steps, and until each run's final loss is reached."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from blast.experiment.analysis.comparison import missing
from blast.experiment.analysis.recipe import variant_of
from blast.experiment.analysis.time_to_loss import METHODS, TimedRun, dense_of, timed_runs
from blast.experiment.plan.rerun import rerun_of_grid
from paper_figures.views import _kernels as kernels
from paper_figures.views import _runs as runs
from paper_figures.views import _style as style
from paper_figures.views._write import RERUN

TITLE = "Time of whole runs, and to equal validation loss"
CATEGORY = "Training"
SUITES = ("train",)
COLUMNS = (
    "hardware", "grid", "model", "dataset", "method", "execution", "sparsity", "block", "seed", "point", "variant",
    "end_of", "loss", "dense_s", "pruned_s", "ratio", "dense_compile_s", "pruned_compile_s", "ratio_without_compiling",
    "mask_update_share", "status", RERUN,
)  # fmt: skip
KEY = (
    "grid", "hardware", "model", "dataset", "method", "execution", "sparsity", "block", "variant", "seed", "end_of",
    "point",
)  # fmt: skip
SHOWN_KEY = ("model", "data", "run", "block", "until", "machine")
# Where the times of a row end, as printed.
ENDS = {"steps": "all steps", "dense": "final loss of dense", "pruned": "final loss of this run"}


def _facts(point: Any) -> dict[str, Any]:
    return {name: getattr(point, name, None) for name in COLUMNS[:10]} | {"variant": variant_of(point.point)}


def _lines(run: TimedRun, dense: TimedRun) -> list[dict[str, Any]]:
    """Three lines: all steps, the time to the final loss of dense, the time to the final loss of the pruned run."""
    ends = [("dense", dense.final), ("pruned", run.final)]
    times = [(name, loss, *((r.time_to(loss), r.time_running_to(loss)) for r in (dense, run))) for name, loss in ends]
    if dense.steps == run.steps:
        times.insert(0, ("steps", run.final, *((r.total, r.running[-1]) for r in (dense, run))))
    lines = []
    for name, loss, (theirs, theirs_running), (own, own_running) in times:
        both = theirs is not None and own is not None
        lines.append(_facts(run.point) | {
            "end_of": name, "loss": loss, "dense_s": math.nan if theirs is None else theirs,
            "pruned_s": math.nan if own is None else own, "ratio": theirs / own if both else math.nan,
            "dense_compile_s": dense.compiling[-1], "pruned_compile_s": run.compiling[-1],
            "ratio_without_compiling": theirs_running / own_running if both else math.nan,
            "mask_update_share": run.update_share,
            "status": "ok" if both else "not reached",
            RERUN: rerun_of_grid(run.point.grid, [dense.point.point, run.point.point]),
        })  # fmt: skip
    return lines


def rows(table: pd.DataFrame) -> pd.DataFrame:
    """Three rows for each pruned run, then runs that were not run. With `ratio` above 1 the pruned run was faster."""
    table = table[(table["suite"] == "train") & table["method"].isin(METHODS)]
    lines = []
    for group in timed_runs(table):
        for run in group:
            if run.point.method == "dense":
                continue
            dense = dense_of(run, group)
            if dense is None:
                lines.append(_facts(run.point) | {"end_of": "pruned", "loss": run.final, "pruned_s": run.total,
                                                  "status": "dense not run",
                                                  RERUN: rerun_of_grid(run.point.grid, [run.point.point])})  # fmt: skip
            else:
                lines += _lines(run, dense)
    lost = missing(table, execution_variants=True)
    lost = lost[(lost["method"] != "dense") & (lost["sparsity"] > 0)]
    for point in lost.itertuples(index=False):
        lines.append(_facts(point) | {"status": point.status, RERUN: rerun_of_grid(point.grid, [point.point])})
    if not lines:
        lines = [{"status": "not run"}]
    return pd.DataFrame(lines, columns=list(COLUMNS)).astype({"seed": "Int64"})


def printed(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows as they are printed."""

    def time(seconds: float, status: str) -> str:
        return "not reached" if pd.isna(seconds) and status == "not reached" else runs.time_label(seconds)

    lines = []
    for row in frame.itertuples(index=False):
        known = isinstance(row.model, str)
        lines.append({
            "model": style.model_label(row.model) if known else "–",
            "data": style.dataset_label(row.dataset),
            "run": runs.run_label(row) if known else "–",
            "block": kernels.block_label(row.block) if isinstance(row.block, str) else "",
            "until": "" if pd.isna(row.end_of) else ENDS[row.end_of],
            "loss": "–" if pd.isna(row.loss) else f"{row.loss:.3f}",
            "dense": time(row.dense_s, row.status),
            "this run": time(row.pruned_s, row.status),
            "times faster": "–" if pd.isna(row.ratio) else f"{row.ratio:.2f}×",
            "without compiling": (
                "–" if pd.isna(row.ratio_without_compiling) else f"{row.ratio_without_compiling:.2f}×"
            ),
            "mask updates": "–" if pd.isna(row.mask_update_share) else f"+{100 * row.mask_update_share:.1f} %",
            "machine": style.hardware_label(row.hardware),
            "status": row.status,
        })  # fmt: skip
    return pd.DataFrame(lines)
