"""Quality against measured time of a training step and of a token, with small dense models drawn in."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from blast.experiment.analysis.comparison import missing
from blast.experiment.analysis.recipe import STUDY, main_scores
from blast.experiment.analysis.run_times import of_configurations, step_times, token_times
from blast.experiment.analysis.trials import chosen_trials
from blast.experiment.plan.grid import SMALL_DENSE
from blast.sparsity.config import METHOD_DETAILS
from paper_figures.views import _style as style
from paper_figures.views._titles import start_and_grid

TITLE = "Quality by measured time"
CATEGORY = "Quality"
# Where the labels of a method stand: those of two methods with near numbers do not cover each other.
CORNERS: tuple[dict[str, Any], ...] = (
    {"xytext": (3, 3), "ha": "left", "va": "bottom"}, {"xytext": (-3, -3), "ha": "right", "va": "top"},
    {"xytext": (-3, 3), "ha": "right", "va": "bottom"}, {"xytext": (3, -3), "ha": "left", "va": "top"},
)  # fmt: skip
SUITES = ("train",)
TIMES = {"step_ms": "time of a training step (ms)", "token_us": "time of a token, scoring (µs)"}


def _points(table: pd.DataFrame) -> pd.DataFrame:
    """Recipes of models that were trained themselves, with their times."""
    scores = main_scores(table)
    once = {name for name, method in METHOD_DETAILS.items() if method.prunes_parent}
    scores = scores[scores["recipe"] & scores["usual"] & scores["teacher"].isna() & ~scores["method"].isin(once)]
    return scores.assign(
        step_ms=of_configurations(scores, step_times(table)), token_us=of_configurations(scores, token_times(table))
    )


def _look(method: str) -> dict[str, Any]:
    if method == "dense":
        return {"color": style.INK, "marker": "*", "markersize": 6.5}
    marker = style.METHODS.get(method, style.Mark("", "X")).marker
    return {"color": style.method_colour(method), "marker": marker, "markersize": 4}


def _front(axes: Axes, rows: pd.DataFrame, time: str, factor: float) -> None:
    """Steps through the models that no other one beats in both time and quality."""
    higher = bool(rows["higher"].iloc[0])
    best, front = None, []
    for row in rows.sort_values([time, "value"], ascending=[True, not higher]).itertuples(index=False):
        if best is None or (row.value > best if higher else row.value < best):
            best = row.value
            front.append((getattr(row, time), row.value * factor))
    axes.step(*zip(*front, strict=True), where="post", color="#bbbbbb", linewidth=3.0, alpha=0.55, zorder=1)


def _panel(axes: Axes, rows: pd.DataFrame, time: str) -> None:
    known = rows[rows[time].notna()]
    first = rows.iloc[0]
    factor = style.in_percent(first["metric"])
    if known.empty:
        style.empty_panel(axes)
        axes.set_xlabel(TIMES[time])
        return
    _front(axes, known, time, factor)
    for place, (method, line) in enumerate(known.groupby("method", sort=True)):
        line = line.sort_values(["ffn", "sparsity"])
        axes.plot(line[time], line["value"] * factor, zorder=3, linewidth=0.8,
                  linestyle=(0, (3, 1.5)) if method == SMALL_DENSE else "-", **_look(method))  # fmt: skip
        for row in line.itertuples(index=False):
            name = f"ffn {row.ffn:.0f}" if method == SMALL_DENSE else f"{100 * row.sparsity:g}" if row.sparsity else ""
            axes.annotate(name, (getattr(row, time), row.value * factor), fontsize=5, textcoords="offset points",
                          color=style.method_colour(method), **CORNERS[place % len(CORNERS)])  # fmt: skip
    axes.margins(x=0.14, y=0.14)
    axes.set_xlabel(TIMES[time])


def draw(table: pd.DataFrame) -> Figure:
    """Draws for each model and dataset a panel of training steps, and of tokens for language models."""
    table = chosen_trials(table)
    points = _points(table)
    train = table[table["suite"] == "train"]
    timed = points[points[list(TIMES)].notna().any(axis=1)]
    if timed.empty:
        return style.not_run(TITLE, style.why_empty(train[train["metric"].isna()]))
    # Dense alone is no comparison.
    studies = [rows for _, rows in points.groupby([*STUDY, "metric"], dropna=False, sort=True)
               if rows[list(TIMES)].notna().any(axis=None) and rows["sparsity"].max() > 0]  # fmt: skip
    if not studies:
        return style.not_run(TITLE)
    panels = [
        (rows, time) for rows in studies for time in TIMES if time == "step_ms" or rows["metric"].iloc[0] != "top1"
    ]
    columns = min(2, len(panels))
    count = -(-len(panels) // columns)
    figure = style.new_figure(style.DOUBLE if columns > 1 else style.COLUMN, 2.2 * count + 0.65)
    grid = figure.subplots(count, columns, squeeze=False).ravel()
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    for axes, (rows, time) in zip(grid, panels, strict=False):
        first = rows.iloc[0]
        start, grid_name = start_and_grid(first, len(set(pd.concat(studies)["grid"])))
        model, dataset = style.model_label(first["model"]), style.dataset_label(first["dataset"])
        axes.set_title(f"{model}{start}\n{dataset}{grid_name}")
        _panel(axes, rows, time)
        axes.set_xlabel(f"{axes.get_xlabel()},\n{style.hardware_label(first['hardware'])}")
        axes.set_ylabel(style.metric_label(first["metric"], first["task"]))
    shown = pd.concat(studies)
    order = list(style.METHODS)
    drawn = shown[shown[list(TIMES)].notna().any(axis=1)]
    methods = sorted(set(drawn["method"]), key=lambda name: (order.index(name) if name in order else 99, name))
    entries = [style.handle(style.method_label(method), linestyle="none", **_look(method)) for method in methods]
    entries.append(style.handle("no other is faster and better", linestyle="-", color="#bbbbbb", linewidth=3))
    style.legend_above(figure, entries)
    style.finish(figure)
    untimed = int(shown["step_ms"].isna().sum())
    remark = f"The training of {untimed} models was not timed." if untimed else ""
    style.footer(figure, shown, "Numbers: sparsity in %, or the inner width of a small dense model.", remark,
                 style.side_by_side_remark(table), style.missing_remark(missing(train)))  # fmt: skip
    return figure
