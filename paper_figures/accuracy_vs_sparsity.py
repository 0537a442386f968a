"""Quality against sparsity for each architecture and dataset: pruned and small dense models, and the 2.25 % line."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from blast.experiment.analysis.comparison import missing
from blast.experiment.analysis.recipe import STUDY, has_equal_weights, main_scores
from blast.experiment.analysis.trials import chosen_trials
from blast.experiment.plan.grid import SMALL_DENSE
from paper_figures import _style as style

TITLE = "Quality against sparsity"
LIMIT = 2.25
COLUMNS = 3
# Distance between methods of one sparsity, in units of `style.sparsity_place`.
STEP = 0.085
TAUGHT_LINE, SMALL_LINE = (0, (1.2, 1.2)), (0, (4, 1.5))


def _series(rows: pd.DataFrame) -> list[tuple[tuple[str, bool, bool], pd.DataFrame]]:
    """The lines of a panel: a method, whether it was taught, and whether it has a given width."""
    pruned = rows[rows["method"] != "dense"]
    order = list(style.METHODS)
    keys = [
        (row.method, isinstance(row.teacher, str), row.method == SMALL_DENSE and not has_equal_weights(row))
        for row in pruned.itertuples(index=False)
    ]
    lines = {key: pruned[[other == key for other in keys]].sort_values("sparsity") for key in set(keys)}
    return sorted(lines.items(), key=lambda line: (order.index(line[0][0]) if line[0][0] in order else 99, line[0]))


def _look(key: tuple[str, bool, bool]) -> dict[str, Any]:
    method, taught, wide = key
    colour = style.method_colour(method)
    look = {"color": colour, "marker": style.METHODS.get(method, style.Mark("", "X")).marker, "linewidth": 1.1,
            "markerfacecolor": "white" if taught or wide else colour, "markeredgewidth": 0.9}  # fmt: skip
    return look | {"linestyle": TAUGHT_LINE if taught else SMALL_LINE if method == SMALL_DENSE else "-"}


def _label(key: tuple[str, bool, bool]) -> str:
    method, taught, wide = key
    if method == SMALL_DENSE:
        return style.method_label(method) + (", given width" if wide else ", equal weights")
    return style.method_label(method) + ", taught" * taught


def _limits(rows: pd.DataFrame, factor: float) -> tuple[float, float]:
    """Axis limits that show dense, its 2.25 % line, and all models within four times of the best line's reach."""
    dense = rows.loc[rows["method"] == "dense", "value"]
    base = (dense.min() if not rows["higher"].iloc[0] else dense.max()) if len(dense) else rows["value"].median()
    best = rows[rows["method"].isin(["dense", "blast"])]
    best = best if len(best) else rows
    reach = max((best["value"] - base).abs().max() * 1.6, abs(base) * 1.25 * LIMIT / 100)
    near = rows.loc[(rows["value"] - base).abs() <= 2 * reach, ["lowest", "highest"]]
    low, high = near["lowest"].min(), near["highest"].max()
    line = base * (1 - LIMIT / 100 if rows["higher"].iloc[0] else 1 + LIMIT / 100)
    low, high = min(low, base, line), max(high, base, line)
    margin = 0.09 * (high - low)
    return (low - 1.6 * margin) * factor, (high + margin) * factor


def _draw_series(axes: Axes, line: pd.DataFrame, look: dict, shift: float, factor: float, limits: tuple) -> None:
    places = line["sparsity"].map(style.sparsity_place) + shift
    inside = [limits[0] <= value * factor <= limits[1] for value in line["value"]]
    axes.plot(places[inside], line.loc[inside, "value"] * factor, zorder=4, markersize=3.6, **look)
    for place, row, shown in zip(places, line.itertuples(index=False), inside, strict=True):
        if not shown:
            _at_the_edge(axes, place, row.value * factor, look, limits)
        elif row.seeds > 1:
            axes.plot([place, place], [row.lowest * factor, row.highest * factor], color=look["color"], linewidth=3.2,
                      alpha=0.4, solid_capstyle="butt", zorder=3)  # fmt: skip


def _at_the_edge(axes: Axes, place: float, value: float, look: dict, limits: tuple[float, float]) -> None:
    """Off the scale: drawn at the edge with its value."""
    edge, sign = (limits[1], 1) if value > limits[1] else (limits[0], -1)
    inner = edge - sign * 0.075 * (limits[1] - limits[0])
    axes.plot(place, inner, markersize=3.6, zorder=3, **(look | {"linestyle": "none"}))
    arrow = "↑" if sign > 0 else "↓"
    axes.annotate(
        f"{arrow} {value:.3g}", (place, inner), xytext=(0, -4 * sign), textcoords="offset points", rotation=90,
        fontsize=5.5, color=style.MUTED, ha="center", va="top" if sign > 0 else "bottom",
    )  # fmt: skip


def _panel(axes: Axes, rows: pd.DataFrame, lost: pd.DataFrame) -> None:
    first = rows.iloc[0]
    factor, limits = style.in_percent(first["metric"]), _limits(rows, style.in_percent(first["metric"]))
    for dense in rows[rows["method"] == "dense"].itertuples(index=False):
        taught = isinstance(dense.teacher, str)
        axes.axhspan(dense.lowest * factor, dense.highest * factor, color=style.FAINT, linewidth=0, zorder=0)
        axes.axhline(dense.value * factor, color=style.INK, linestyle=TAUGHT_LINE if taught else (0, (4, 2)),
                     linewidth=0.9, zorder=1)  # fmt: skip
        if not taught:
            line = dense.value * factor * (1 - LIMIT / 100 if first["higher"] else 1 + LIMIT / 100)
            axes.axhline(line, color="#B22222", linewidth=0.7, linestyle=":", zorder=1)
            axes.annotate(f"{LIMIT} %", (1.0, line), xycoords=("axes fraction", "data"), xytext=(2, 0),
                          textcoords="offset points", fontsize=5.5, color="#B22222", va="center")  # fmt: skip
    series = _series(rows)
    methods = [key for key, _ in series]
    methods += [(method, False, False) for method in sorted(set(lost["method"]) - {key[0] for key in methods})]
    shifts = {key: STEP * (number - (len(methods) - 1) / 2) for number, key in enumerate(methods)}
    for key, line in series:
        _draw_series(axes, line, _look(key), shifts[key], factor, limits)
    for (method, taught, sparsity), absent in lost.groupby(["method", lost["teacher"].notna(), "sparsity"]):
        shift = shifts.get((method, taught, False), 0.0)
        if sparsity:
            marker = style.METHODS.get(method, style.Mark("", "X")).marker
            style.mark_missing(axes, style.sparsity_place(sparsity) + shift, absent["status"].iloc[0], marker)
    chance = first["chance"] * factor
    if limits[0] < chance < limits[1]:
        axes.axhline(chance, color=style.MUTED, linewidth=0.7, linestyle=":")
        axes.annotate("chance", (0.01, chance), xycoords=("axes fraction", "data"), fontsize=5.5, color=style.MUTED,
                      va="bottom")  # fmt: skip
    axes.set_ylim(*limits)
    known = [*rows["sparsity"], *lost["sparsity"]]
    style.sparsity_axis(axes, known)
    reach = max(shifts.values(), default=0.0)
    axes.set_xlim(axes.get_xlim()[0] - reach, axes.get_xlim()[1] + reach)
    axes.set_ylabel(style.metric_label(first["metric"], first["task"]))


def _heading(row: Any, grids: int) -> str:
    start = "" if row.start in ("scratch", None) else f", {row.start}"
    grid = f" ({row.grid})" if grids > 1 else ""
    return f"{style.model_label(row.model)}{start}\n{style.dataset_label(row.dataset)}{grid}"


def draw(table: pd.DataFrame) -> Figure:
    """Draws a panel for each architecture and dataset with its main metric. The caption explains it to the reader."""
    table = chosen_trials(table)
    scores = main_scores(table)
    scores = scores[scores["recipe"] & scores["usual"]]
    lost = missing(table[table["suite"] == "train"])
    lost = lost.assign(start=lost["start"].where(lost["start"].notna(), "scratch"))
    place = ["grid", "model", "dataset", "start"]
    # If any model was pruned, leave out models that were only evaluated dense.
    awaited = set(lost[place].itertuples(index=False, name=None))
    pruned = scores.groupby(place, dropna=False)["sparsity"].transform("max") > 0
    waiting = [key in awaited for key in scores[place].itertuples(index=False, name=None)]
    if pruned.any():
        scores = scores[pruned | pd.Series(waiting, index=scores.index, dtype=bool)]
    panels = [rows for _, rows in scores.groupby([*STUDY, "metric"], dropna=False, sort=True)]
    if not panels:
        return style.not_run(TITLE, style.why_empty(table))
    have = set(scores[place].itertuples(index=False, name=None))
    # Models without any score get an empty panel after the others.
    panels += [rows for key, rows in lost.groupby(place, sort=True) if key not in have]
    count = -(-len(panels) // COLUMNS)
    columns = -(-len(panels) // count)
    figure = style.new_figure(style.DOUBLE if columns > 1 else style.COLUMN, 2.25 * count + 0.7)
    grid = figure.subplots(count, columns, squeeze=False).ravel()
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    for axes, rows in zip(grid, panels, strict=False):
        first = rows.iloc[0]
        axes.set_title(style.fitted(_heading(first, scores["grid"].nunique()), columns))
        if "metric" not in rows:
            style.empty_panel(axes, style.why_empty(rows))
            continue
        here = (lost[place] == first[place]).all(axis=1)
        drawn = set(rows[["method", "sparsity"]].itertuples(index=False, name=None))
        absent = [key not in drawn for key in lost[["method", "sparsity"]].itertuples(index=False, name=None)]
        _panel(axes, rows, lost[here & pd.Series(absent, index=lost.index, dtype=bool)])
    keys = sorted({key for rows in panels if "metric" in rows for key, _ in _series(rows)}, key=_label)
    keys.sort(key=lambda key: (list(style.METHODS).index(key[0]) if key[0] in style.METHODS else 99, key))
    entries = [style.handle("best dense", linestyle=(0, (4, 2)), color=style.INK, linewidth=0.9)]
    if scores["teacher"].notna().any():
        entries.append(style.handle("dense, taught", linestyle=TAUGHT_LINE, color=style.INK, linewidth=0.9))
    entries += [style.handle(_label(key), **_look(key)) for key in keys]
    if (scores["seeds"] > 1).any():
        entries.append(style.seed_handle())
    style.legend_above(figure, entries)
    style.finish(figure)
    trained = "Learning rates were chosen on another part of the held-out data." if (scores["trials"] > 1).any() else ""
    style.footer(figure, scores, "Off the scale: at the edge, with its value.", trained, style.missing_remark(lost))
    return figure
