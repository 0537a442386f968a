"""Validation loss by training time, without the time of evaluations."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from blast.experiment.analysis.comparison import missing
from blast.experiment.analysis.time_to_loss import METHODS, TimedRun, reference_dense, timed_runs
from blast.experiment.analysis.trials import chosen_trials
from paper_figures.views import _runs as runs
from paper_figures.views import _style as style

TITLE = "Validation loss by training time"
CATEGORY = "Training"
SUITES = ("train",)
# Share of the longest run that does not count for the loss axis: early losses would flatten the rest.
EARLY = 0.35


def _panel(axes: Axes, group: list[TimedRun], grids: int) -> None:
    size, unit = runs.unit_of(max(run.running[-1] for run in group))
    for run in group:
        colour = style.sparsity_colour(run.point.sparsity)
        axes.plot([second / size for second in run.running], run.losses, color=colour,
                  linestyle=runs.line_of(run.point), linewidth=1.1, zorder=3)  # fmt: skip
        axes.plot(run.running[-1] / size, run.final, marker="o", markersize=3, color=colour, zorder=4)
    for ends in _ends_by_length(group):
        axes.plot([run.running[-1] / size for run in ends], [run.final for run in ends], linewidth=2.4, alpha=0.3,
                  color=style.sparsity_colour(ends[0].point.sparsity), zorder=2)  # fmt: skip
    dense = reference_dense(group)
    if dense is not None:
        axes.axhline(dense.final, color=style.INK, linewidth=0.6, linestyle=(0, (4, 2)), zorder=2)
        for run in group:
            reached = run.time_running_to(dense.final)
            if run.point.method != "dense" and reached is not None:
                axes.plot(reached / size, dense.final, marker="D", markersize=3.8, markerfacecolor="white",
                          color=style.sparsity_colour(run.point.sparsity), markeredgewidth=0.9, zorder=5)  # fmt: skip
    longest = max(run.running[-1] for run in group)
    late = [loss for run in group for second, loss in zip(run.running, run.losses, strict=True)
            if second >= EARLY * longest]  # fmt: skip
    low, high = min(late), max(late)
    if high > low:
        axes.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
    axes.set_xlim(0, 1.03 * longest / size)
    axes.set_xlabel(f"training time ({unit}),\n{style.hardware_label(group[0].point.hardware)}")
    axes.set_title(runs.panel_title(group[0].point, grids))


def _ends_by_length(group: list[TimedRun]) -> list[list[TimedRun]]:
    """Runs of one recipe that have different lengths; each decayed at its own end."""
    recipes: dict[tuple, list[TimedRun]] = {}
    for run in group:
        key = run.point.method, run.point.sparsity, run.point.block, run.point.seed, run.point.execution
        recipes.setdefault(tuple(map(str, key)), []).append(run)
    several = [sorted(same, key=lambda run: run.steps) for same in recipes.values()]
    return [same for same in several if len({run.steps for run in same}) > 1]


def _reached(group: list[TimedRun], grids: int) -> str:
    """When each pruned or small run reaches the last loss of dense."""
    dense = reference_dense(group)
    if dense is None:
        return ""
    best: dict[str, tuple[float, TimedRun]] = {}
    never = []
    for run in (run for run in group if run.point.method != "dense"):
        name, reached = runs.run_label(run.point), run.time_running_to(dense.final)
        if reached is not None and (name not in best or reached < best[name][0]):
            best[name] = reached, run
        never.append(name)
    took = [f"{name} {runs.time_label(time)} ({run.steps} steps)" for name, (time, run) in best.items()]
    short = [name for name in dict.fromkeys(never) if name not in best]
    point = dense.point
    text = f"{runs.panel_title(point, grids).replace(chr(10), ', ')}: dense's last loss, "
    text += f"{dense.final:.3f} after {runs.time_label(dense.running[-1])} ({dense.steps} steps), is reached by "
    text += ", ".join(took) or "none"
    return text + (f"; not by {', '.join(short)}." if took and short else ".")


def draw(table: pd.DataFrame) -> Figure:
    """Draws a panel for each model and dataset, with a line for each run whose training was timed."""
    table = chosen_trials(table)
    table = table[(table["suite"] == "train") & table["method"].isin(METHODS)]
    groups = timed_runs(table)
    if not groups:
        return style.not_run(TITLE, style.why_empty(table[table["metric"].isna()]))
    grids = len({group[0].point.grid for group in groups})
    columns = min(3, len(groups))
    lines = -(-len(groups) // columns)
    figure = style.new_figure(style.DOUBLE if columns > 1 else style.COLUMN, 2.3 * lines + 0.6)
    grid = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes in grid[len(groups) :]:
        axes.set_visible(False)
    for axes, group in zip(grid, groups, strict=False):
        _panel(axes, group, grids)
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
    entries.append(style.handle("last loss of dense", linestyle=(0, (4, 2)), color=style.INK, linewidth=0.6))
    entries.append(style.handle("reaches the last loss of dense", marker="D", markerfacecolor="white"))
    if any(_ends_by_length(group) for group in groups):
        entries.append(style.handle("ends of runs of several lengths", linestyle="-", linewidth=2.4, alpha=0.4))
    style.legend_above(figure, entries, length=2.8)
    style.finish(figure)
    shown = pd.DataFrame(points)
    compiled = max(run.compiling[-1] for group in groups for run in group)
    compiling = f"Compile time (up to {runs.time_label(compiled)}) is left out." if compiled else ""
    note = "Wall times: runs of a grid may have shared their machine."
    note += " Levers, taught models and runs without times are left out."
    reached = " ".join(_reached(group, grids) for group in groups)
    beside = style.side_by_side_remark(table)
    style.footer(
        figure, shown, reached, compiling, note, beside, style.missing_remark(missing(table, execution_variants=True))
    )
    return figure
