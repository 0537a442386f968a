"""Quality against sparsity, a panel for each architecture, dataset and metric."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from blast.experiment.analysis.comparison import missing, summarise
from paper_figures import _style as style

TITLE = "Quality against sparsity"
METRICS = ("bits_per_byte", "top1", "acc")
BASELINES = ("rigl_swap", "random", "one_shot")
COLUMNS = 3
# Distance between baselines of one sparsity, in units of `style.sparsity_place`.
STEP = 0.24


def _error_bar(axes: Axes, place: float, row: pd.Series, factor: float, colour: str) -> None:
    if not math.isnan(row["error"]):
        low, high = (row["value"] - row["error"]) * factor, (row["value"] + row["error"]) * factor
        axes.plot([place, place], [low, high], color=colour, linewidth=0.8, zorder=2)
    if row["seeds"] > 1:
        low, high = row["lowest"] * factor, row["highest"] * factor
        axes.plot([place, place], [low, high], color=colour, linewidth=3.2, alpha=0.4, solid_capstyle="butt", zorder=2)


def _limits(rows: pd.DataFrame, factor: float) -> tuple[float, float]:
    """Axis limits that fit dense and BLaST. Baselines far outside are drawn at the edge."""
    near = rows[rows["method"].isin(["dense", "blast"])]
    near = near if len(near) else rows
    error = near["error"].fillna(0)
    low, high = (near["value"] - error).min() * factor, (near["value"] + error).max() * factor
    reach = 1.2 * (high - low) or abs(high) * 0.05 or 1.0
    everything = rows["value"] * factor
    near_baselines = everything[(everything > low - reach) & (everything < high + reach)]
    low, high = min(low, near_baselines.min()), max(high, near_baselines.max())
    margin = 0.1 * (high - low) or 0.05 * abs(high) or 1.0
    return low - 1.6 * margin, high + margin


def _baseline(axes: Axes, place: float, row: pd.Series, factor: float, limits: tuple[float, float]) -> None:
    value, marker = row["value"] * factor, style.METHODS.get(row["method"], style.Mark("", "X")).marker
    filled = {"color": style.INK, "markerfacecolor": "none", "markeredgewidth": 0.9, "linestyle": "none"}
    if limits[0] <= value <= limits[1]:
        _error_bar(axes, place, row, factor, style.MUTED)
        axes.plot(place, value, marker=marker, zorder=3, **filled)
        return
    # Off the scale: draw it at the edge and write its value.
    edge, sign = (limits[1], 1) if value > limits[1] else (limits[0], -1)
    inner = edge - sign * 0.075 * (limits[1] - limits[0])
    axes.plot(place, inner, marker=marker, zorder=3, **filled)
    arrow = "↑" if sign > 0 else "↓"
    axes.annotate(
        f"{arrow} {value:.3g}", (place, inner), xytext=(0, -4 * sign), textcoords="offset points", rotation=90,
        fontsize=5.5, color=style.MUTED, ha="center", va="top" if sign > 0 else "bottom",
    )  # fmt: skip


def _panel(axes: Axes, rows: pd.DataFrame, lost: pd.DataFrame, grids: int) -> None:
    first = rows.iloc[0]
    factor, colour = style.in_percent(first["metric"]), style.model_colour(first["model"])
    limits = _limits(rows, factor)
    for _, dense in rows[rows["method"] == "dense"].iterrows():
        value, error = dense["value"] * factor, (0 if math.isnan(dense["error"]) else dense["error"]) * factor
        axes.axhspan(value - error, value + error, color=style.FAINT, alpha=0.6, linewidth=0, zorder=0)
        axes.axhline(value, color=style.INK, linestyle=(0, (4, 2)), linewidth=0.9, zorder=1)
    pruned = rows[rows["method"] != "dense"]
    blast = pruned[pruned["method"] == "blast"]
    for block, line in blast.groupby("block", dropna=False):
        line = line.sort_values("sparsity")
        places = line["sparsity"].map(style.sparsity_place)
        axes.plot(places, line["value"] * factor, marker="o", color=colour, zorder=4)
        for place, (_, row) in zip(places, line.iterrows(), strict=True):
            _error_bar(axes, place, row, factor, colour)
        if blast["block"].nunique() > 1:
            axes.annotate(f"{block}", (places.iloc[-1], line["value"].iloc[-1] * factor), xytext=(4, 0),
                          textcoords="offset points", fontsize=5.5, color=colour, va="center")  # fmt: skip
    present = {*pruned["method"], *lost["method"]} - {"blast", "dense"}
    order = [name for name in BASELINES if name in present] + sorted(present - set(BASELINES))
    for _, row in pruned[pruned["method"] != "blast"].iterrows():
        place = style.sparsity_place(row["sparsity"]) + STEP * (1 + order.index(row["method"]))
        _baseline(axes, place, row, factor, limits)
    for (method, sparsity), absent in lost[lost["method"] != "dense"].groupby(["method", "sparsity"]):
        place = style.sparsity_place(sparsity) + (STEP * (1 + order.index(method)) if method in order else 0)
        marker = style.METHODS.get(method, style.Mark("", "X")).marker if method != "blast" else ""
        style.mark_missing(axes, place, absent["status"].iloc[0], marker)
    chance = first["chance"] * factor
    if not math.isnan(chance) and limits[0] < chance < limits[1]:
        axes.axhline(chance, color=style.MUTED, linewidth=0.7, linestyle=":")
        axes.annotate(
            "chance", (0.01, chance), xycoords=("axes fraction", "data"), fontsize=5.5, color=style.MUTED, va="bottom"
        )
    axes.set_ylim(*limits)
    known = [*pruned["sparsity"], *lost["sparsity"]]
    style.sparsity_axis(axes, known, right=STEP * (len(order) + 0.7))
    axes.set_ylabel(style.metric_label(first["metric"], first["task"]))
    _title(axes, first, grids)


def _title(axes: Axes, row: pd.Series, grids: int) -> None:
    """Model, then dataset on a line of its own: both do not fit beside each other. Names the grid if there are more."""
    grid = f" · {row['grid']}" if grids > 1 else ""
    axes.set_title(f"{style.model_label(row['model'])}\n{style.dataset_label(row['dataset'])}{grid}")


def draw(table: pd.DataFrame) -> Figure:
    """Draws a panel for each grid, model, dataset and metric. The caption explains it to the reader."""
    summary = summarise(table, METRICS)
    lost = missing(table[table["suite"] == "train"])
    keys = ["grid", "model", "dataset", "metric", "task"]
    # If any model was pruned, leave out models that were only evaluated dense.
    pruned = summary.groupby(keys[:3], dropna=False)["sparsity"].transform("max") > 0
    lacking = set(lost[keys[:3]].itertuples(index=False, name=None))
    awaited = [key in lacking for key in summary[keys[:3]].itertuples(index=False, name=None)]
    if pruned.any():
        summary = summary[pruned | pd.Series(awaited, index=summary.index, dtype=bool)]
    panels = [rows for _, rows in summary.groupby(keys, dropna=False, sort=True)]
    panels.sort(key=lambda rows: (*rows[keys[:3]].iloc[0].astype(str), METRICS.index(rows["metric"].iloc[0])))
    if not panels:
        return style.not_run(TITLE, style.why_empty(table))
    # Models without any score get an empty panel after the others.
    have = set(summary[keys[:3]].itertuples(index=False, name=None))
    panels += [rows for key, rows in lost.groupby(keys[:3], sort=True) if key not in have]
    # Filled column by column, so that the metrics of one model are below each other.
    count = -(-len(panels) // COLUMNS)
    columns = -(-len(panels) // count)
    figure = style.new_figure(style.DOUBLE if columns > 1 else style.COLUMN, 1.85 * count + 0.65)
    grid = figure.subplots(count, columns, squeeze=False).ravel(order="F")
    for axes, rows in zip(grid, panels, strict=False):
        first = rows.iloc[0]
        if "metric" not in rows:
            _title(axes, first, summary["grid"].nunique())
            style.empty_panel(axes, style.why_empty(rows))
            continue
        here = (
            (lost["grid"] == first["grid"]) & (lost["model"] == first["model"]) & (lost["dataset"] == first["dataset"])
        )
        drawn = set(rows[["method", "sparsity"]].itertuples(index=False, name=None))
        absent = [key not in drawn for key in lost[["method", "sparsity"]].itertuples(index=False, name=None)]
        _panel(axes, rows, lost[here & pd.Series(absent, index=lost.index, dtype=bool)], summary["grid"].nunique())
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    for place, axes in enumerate(grid[: len(panels)]):
        if place % count < count - 1 and place + 1 < len(panels):
            axes.set_xlabel("")
    entries = [style.handle("dense", linestyle=(0, (4, 2)), color=style.INK, linewidth=0.9)]
    for method in ("blast", *BASELINES):
        mark = style.METHODS[method]
        face = {} if method == "blast" else {"markerfacecolor": "none", "color": style.INK}
        if method in set(summary["method"]):
            entries.append(style.handle(mark.label, marker=mark.marker, **face))
    entries.append(style.handle("± 1 standard error", linestyle="-", linewidth=0.8, marker=""))
    if (summary["seeds"] > 1).any():
        entries.append(style.seed_handle())
    style.legend_above(figure, entries)
    style.finish(figure)
    beside = "Baselines are drawn beside their sparsity. One off the scale is at the edge, with its value."
    remark = beside if set(summary["method"]) & set(BASELINES) else ""
    style.footer(figure, summary, remark, style.missing_remark(lost))
    return figure
