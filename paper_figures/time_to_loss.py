"""Validation loss by training time, without the time of evaluations."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from blast.experiment.analysis.comparison import missing
from blast.experiment.analysis.time_to_loss import METHODS, TimedRun, dense_of, timed_runs
from paper_figures import _runs as runs
from paper_figures import _style as style

TITLE = "Validation loss by training time"
# Share of the longest run that does not count for the loss axis: early losses would flatten the rest.
EARLY = 0.35


def _panel(axes: Axes, group: list[TimedRun]) -> None:
    size, unit = runs.unit_of(max(run.running[-1] for run in group))
    for run in group:
        colour = style.sparsity_colour(run.point.sparsity)
        axes.plot([second / size for second in run.running], run.losses, color=colour,
                  linestyle=runs.line_of(run.point), linewidth=1.1, zorder=3)  # fmt: skip
        axes.plot(run.running[-1] / size, run.final, marker="o", markersize=3, color=colour, zorder=4)
        dense = dense_of(run, group) if run.point.method != "dense" else None
        reached = dense.time_running_to(run.final) if dense else None
        if reached is not None:
            ends = sorted((reached / size, run.running[-1] / size))
            axes.plot(ends, [run.final] * 2, color=colour, linewidth=0.5, alpha=0.6, zorder=2)
            axes.plot(reached / size, run.final, marker="o", markersize=3.4, color=colour, markerfacecolor="white",
                      markeredgewidth=0.8, zorder=5)  # fmt: skip
    longest = max(run.running[-1] for run in group)
    late = [loss for run in group for second, loss in zip(run.running, run.losses, strict=True)
            if second >= EARLY * longest]  # fmt: skip
    low, high = min(late), max(late)
    if high > low:
        axes.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
    axes.set_xlim(0, 1.03 * longest / size)
    axes.set_xlabel(f"training time ({unit})")
    axes.set_title(runs.panel_title(group[0].point))


def draw(table: pd.DataFrame) -> Figure:
    """Draws a panel for each model and dataset, with a line for each run whose training was timed."""
    table = table[(table["suite"] == "train") & table["method"].isin(METHODS)]
    groups = timed_runs(table)
    if not groups:
        return style.not_run(TITLE, style.why_empty(table[table["metric"].isna()]))
    columns = min(3, len(groups))
    lines = -(-len(groups) // columns)
    figure = style.new_figure(style.DOUBLE if columns > 1 else style.COLUMN, 2.3 * lines + 0.6)
    grid = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes in grid[len(groups) :]:
        axes.set_visible(False)
    for axes, group in zip(grid, groups, strict=False):
        _panel(axes, group)
    units = [group[0].point.unit or "nats" for group in groups]
    for place, axes in enumerate(grid[: len(groups)]):
        axes.set_ylabel(f"validation loss ({units[place]})" if place % columns == 0 else "")
    points = [run.point for group in groups for run in group]
    kinds = {(point.method, point.sparsity, runs.stays_masked(point)): point for point in points}
    entries = [
        style.handle(runs.run_label(point), linestyle=runs.line_of(point), color=style.sparsity_colour(point.sparsity))
        for _, point in sorted(kinds.items(), key=lambda entry: (METHODS.index(entry[0][0]), *entry[0][1:]))
    ]
    entries.append(style.handle("end of a run", marker="o", markersize=3))
    entries.append(style.handle("dense reaches that loss", marker="o", markerfacecolor="white"))
    style.legend_above(figure, entries)
    style.finish(figure)
    shown = pd.DataFrame(points)
    left = {(point.grid, point.point) for point in points}
    done = table[(table["status"] == "ok") & table["step"].notna()].drop_duplicates(["grid", "point"])
    untimed = sum((row.grid, row.point) not in left for row in done.itertuples(index=False))
    compiled = max(run.compiling[-1] for group in groups for run in group)
    compiling = f"Compile time (up to {runs.time_label(compiled)}) is left out." if compiled else ""
    note = "Wall times: runs of a grid may have shared their machine."
    if untimed:
        note += f" {untimed} runs without times, or of another machine, are left out."
    style.footer(figure, shown, compiling, note, style.missing_remark(missing(table, execution_variants=True)))
    return figure
