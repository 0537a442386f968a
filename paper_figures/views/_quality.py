"""Shared by the figures of a score by sparsity: pruned and small dense models, and the 2.25 % line, panel by panel."""

from __future__ import annotations

import itertools
import math
import re
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from blast.experiment.analysis.comparison import missing
from blast.experiment.analysis.recipe import STUDY, has_equal_weights
from blast.experiment.plan.grid import SMALL_DENSE
from paper_figures.views import _style as style
from paper_figures.views._titles import start_and_grid

LIMIT = 2.25
COLUMNS = 3
# Distance between methods of one sparsity, in units of `style.sparsity_place`.
STEP = 0.085
TAUGHT_LINE, SMALL_LINE, BLOCK_LINE = (0, (1.2, 1.2)), (0, (4, 1.5)), (0, (6, 1, 1, 1))
# No method has these markers. A block that is not listed is drawn as a star.
BLOCK_MARKERS = {"8x8": "p", "16x16": "<", "32x32": "d", "64x64": "8", "128x128": ">"}
# Models of one panel, or of several if there are several tasks.
PLACE = ["grid", "model", "dataset", "start"]
# Letters of a line beside the vertical axis.
LETTERS = 26


class Series(NamedTuple):
    """What the models of one line have in common.

    Attributes:
        method: Their method.
        taught: Whether they learned from a dense model.
        wide: Whether they are dense models of a given width.
        block: Their block, such as `16x16`; empty for the block that most models of the panel have, or none.
    """

    method: str
    taught: bool = False
    wide: bool = False
    block: str = ""


def _series(rows: pd.DataFrame) -> list[tuple[Series, pd.DataFrame]]:
    """The lines of a panel, those of other blocks than most after the others of their method."""
    pruned = rows[rows["method"] != "dense"]
    # The block of most models; of several, the one of most seeds, then the first by name.
    blocks = pruned.groupby("block")["seeds"].agg(["size", "sum"]).sort_values(["size", "sum"], kind="stable")
    usual = blocks.index[-1] if len(blocks) else None
    keys = [
        Series(
            row.method,
            isinstance(row.teacher, str),
            row.method == SMALL_DENSE and not has_equal_weights(row),
            row.block if isinstance(row.block, str) and row.block != usual else "",
        )
        for row in pruned.itertuples(index=False)
    ]
    lines = {key: pruned[[other == key for other in keys]].sort_values("sparsity") for key in set(keys)}
    return sorted(lines.items(), key=lambda line: _order(line[0]))


def _order(key: Series) -> tuple[int, str, list[int], bool, bool]:
    known = list(style.METHODS)
    place = known.index(key.method) if key.method in known else len(known)
    return place, key.method, [int(side) for side in re.findall(r"\d+", key.block)], key.taught, key.wide


def _look(key: Series) -> dict[str, Any]:
    colour, hollow = style.method_colour(key.method), key.taught or key.wide
    mark = style.METHODS.get(key.method, style.Mark("", "X"))
    look = {"color": colour, "marker": BLOCK_MARKERS.get(key.block, "*") if key.block else mark.marker,
            "linewidth": 1.1, "markerfacecolor": "white" if hollow else colour, "markeredgewidth": 0.9}  # fmt: skip
    # Widths that were given are no series: two models of one sparsity may be among them.
    return look | {
        "linestyle": "none"
        if key.wide
        else TAUGHT_LINE
        if key.taught
        else SMALL_LINE
        if key.method == SMALL_DENSE
        else BLOCK_LINE
        if key.block
        else "-"
    }


def _label(key: Series) -> str:
    label = style.method_label(key.method)
    if key.method == SMALL_DENSE:
        label += ", given width" if key.wide else ", equal weights"
    sides = dict.fromkeys(key.block.split("x"))
    return label + ", taught" * key.taught + (f", block {' × '.join(sides)}" if key.block else "")


def _limits(rows: pd.DataFrame, factor: float) -> tuple[float, float]:
    """Axis limits that show dense, its 2.25 % line, and all models within four times of the best line's reach."""
    dense = rows.loc[rows["method"] == "dense", "value"]
    base = (dense.min() if not rows["higher"].iloc[0] else dense.max()) if len(dense) else rows["value"].median()
    best = rows[rows["method"].isin(["dense", "blast"])]
    best = best if len(best) else rows
    reach = max((best["value"] - base).abs().max() * 1.6, abs(base) * 1.25 * LIMIT / 100)
    near = rows.loc[(rows["value"] - base).abs() <= 2 * reach, ["bottom", "top"]]
    low, high = near["bottom"].min(), near["top"].max()
    line = base * (1 - LIMIT / 100 if rows["higher"].iloc[0] else 1 + LIMIT / 100)
    low, high = min(low, base, line), max(high, base, line)
    margin = 0.09 * (high - low)
    return (low - 1.6 * margin) * factor, (high + margin) * factor


def _draw_series(
    axes: Axes, line: pd.DataFrame, look: dict, shift: float, factor: float, limits: tuple, errors: bool
) -> None:
    places = line["sparsity"].map(style.sparsity_place) + shift
    inside = [limits[0] <= value * factor <= limits[1] for value in line["value"]]
    axes.plot(places[inside], line.loc[inside, "value"] * factor, zorder=4, markersize=3.6, **look)
    for place, row, shown in zip(places, line.itertuples(index=False), inside, strict=True):
        if not shown:
            _at_the_edge(axes, place, row.value * factor, look, limits)
            continue
        if row.seeds > 1:
            axes.plot([place, place], [row.lowest * factor, row.highest * factor], color=look["color"], linewidth=3.2,
                      alpha=0.4, solid_capstyle="butt", zorder=3)  # fmt: skip
        if errors and not math.isnan(row.error):
            ends = [(row.value - row.error) * factor, (row.value + row.error) * factor]
            axes.plot([place, place], ends, color=look["color"], linewidth=0.8, zorder=3)


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


def _dense_line(axes: Axes, dense: Any, factor: float, errors: bool) -> None:
    """A dense model and its band; for the best one also what is 2.25 % worse, unless it is at chance itself."""
    taught = isinstance(dense.teacher, str)
    low, high = dense.lowest, dense.highest
    if errors and not math.isnan(dense.error):
        low, high = dense.value - dense.error, dense.value + dense.error
    axes.axhspan(low * factor, high * factor, color=style.FAINT, linewidth=0, zorder=0)
    axes.axhline(dense.value * factor, color=style.INK, linestyle=TAUGHT_LINE if taught else (0, (4, 2)),
                 linewidth=0.9, zorder=1)  # fmt: skip
    if not taught and not dense.at_chance:
        line = dense.value * factor * (1 - LIMIT / 100 if dense.higher else 1 + LIMIT / 100)
        axes.axhline(line, color="#B22222", linewidth=0.7, linestyle=":", zorder=1)
        axes.annotate(f"{LIMIT} %", (1.0, line), xycoords=("axes fraction", "data"), xytext=(2, 0),
                      textcoords="offset points", fontsize=5.5, color="#B22222", va="center")  # fmt: skip


def _name_scale(axes: Axes, first: Any, factor: float, limits: tuple[float, float]) -> None:
    """The metric beside the axis, and chance: as a line, or in words where it is off the scale."""
    label, chance = style.metric_label(first["metric"], first["task"]), first["chance"] * factor
    if limits[0] < chance < limits[1]:
        axes.axhline(chance, color=style.MUTED, linewidth=0.7, linestyle=":")
        axes.annotate("chance", (0.01, chance), xycoords=("axes fraction", "data"), fontsize=5.5, color=style.MUTED,
                      va="bottom")  # fmt: skip
    elif not math.isnan(chance):
        # These spaces break no line.
        label += f", chance\N{NO-BREAK SPACE}{chance:.3g}\N{NO-BREAK SPACE}%"
    axes.set_ylabel(textwrap.fill(label, LETTERS))


def _shifts(keys: Sequence[Series]) -> dict[Series, float]:
    """How far each line stands from its sparsity. Blocks of one method have scores that are close: they need more."""
    places = list(itertools.accumulate(STEP * (1.5 if key.block else 1) for key in keys))
    middle = (places[0] + places[-1]) / 2 if places else 0.0
    return {key: place - middle for key, place in zip(keys, places, strict=True)}


def _panel(axes: Axes, rows: pd.DataFrame, lost: pd.DataFrame, errors: bool) -> None:
    first = rows.iloc[0]
    factor = style.in_percent(first["metric"])
    limits = _limits(rows, factor)
    for dense in rows[rows["method"] == "dense"].itertuples(index=False):
        _dense_line(axes, dense, factor, errors)
    series = _series(rows)
    methods = [key for key, _ in series]
    methods += [Series(method) for method in sorted(set(lost["method"]) - {key.method for key in methods})]
    shifts = _shifts(methods)
    for key, line in series:
        _draw_series(axes, line, _look(key), shifts[key], factor, limits, errors)
    for (method, taught, sparsity), absent in lost.groupby(["method", lost["teacher"].notna(), "sparsity"]):
        shift = shifts.get(Series(method, taught), 0.0)
        if sparsity:
            marker = style.METHODS.get(method, style.Mark("", "X")).marker
            style.mark_missing(axes, style.sparsity_place(sparsity) + shift, absent["status"].iloc[0], marker)
    _name_scale(axes, first, factor, limits)
    axes.set_ylim(*limits)
    style.sparsity_axis(axes, [*rows["sparsity"], *lost["sparsity"]])
    reach = max(shifts.values(), default=0.0)
    axes.set_xlim(axes.get_xlim()[0] - reach, axes.get_xlim()[1] + reach)


def _heading(row: Any, grids: int) -> str:
    start, grid = start_and_grid(row, grids)
    return f"{style.model_label(row.model)}{start}\n{style.dataset_label(row.dataset)}{grid}"


def _of_training(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of trained models, each with its start; if any model was pruned, without those that never were."""
    # Rows of curves do not say how their model started.
    rows = table[(table["suite"] == "train") & table["step"].isna()]
    rows = rows.assign(start=rows["start"].where(rows["start"].notna(), "scratch"))
    pruned = rows.groupby(PLACE, dropna=False)["sparsity"].transform("max") > 0
    return rows[pruned] if pruned.any() else rows


def _keys(rows: pd.DataFrame, columns: list[str]) -> pd.Series:
    """For each row the values of these columns."""
    return pd.Series(list(rows[columns].itertuples(index=False, name=None)), index=rows.index, dtype=object)


def _legend(figure: Figure, scores: pd.DataFrame, panels: list[pd.DataFrame], errors: bool) -> None:
    keys = sorted({key for rows in panels for key, _ in _series(rows)}, key=_order)
    entries = [style.handle("best dense", linestyle=(0, (4, 2)), color=style.INK, linewidth=0.9)]
    if scores["teacher"].notna().any():
        entries.append(style.handle("dense, taught", linestyle=TAUGHT_LINE, color=style.INK, linewidth=0.9))
    entries += [style.handle(_label(key), **_look(key)) for key in keys]
    if errors:
        entries.append(style.handle("± 1 standard error", linestyle="-", linewidth=0.8))
    if (scores["seeds"] > 1).any():
        entries.append(style.seed_handle())
    style.legend_above(figure, entries)


def by_sparsity(title: str, table: pd.DataFrame, scores: pd.DataFrame, errors: bool = False) -> Figure:
    """Draws a panel for each model, dataset, metric and task. A model without a score has one that says so.

    Args:
        title: Title of the figure if nothing was run.
        table: All rows, from `trials.chosen_trials`.
        scores: From `recipe.main_scores` or `recipe.accuracy_scores`; recipes are drawn.
        errors: Whether to draw the standard error of each score.
    """
    train = _of_training(table)
    lost = missing(train)
    scores = scores[scores["recipe"] & scores["usual"] & _keys(scores, PLACE).isin(_keys(train, PLACE))]
    error = scores["error"].fillna(0) if errors else 0.0
    scores = scores.assign(
        bottom=(scores["value"] - error).clip(upper=scores["lowest"]),
        top=(scores["value"] + error).clip(lower=scores["highest"]),
    )
    panels = [rows for _, rows in scores.groupby([*STUDY, "metric", "task"], dropna=False, sort=True)]
    if not panels:
        return style.not_run(title, style.why_empty(table))
    # Models without any score get an empty panel after the others.
    without = train[~_keys(train, PLACE).isin(_keys(scores, PLACE))]
    empty = [rows for _, rows in without.groupby(PLACE, dropna=False, sort=True)]
    count = -(-len(panels + empty) // COLUMNS)
    columns = -(-len(panels + empty) // count)
    figure = style.new_figure(style.DOUBLE if columns > 1 else style.COLUMN, 2.25 * count + 0.7)
    grid = figure.subplots(count, columns, squeeze=False).ravel()
    for axes in grid[len(panels + empty) :]:
        axes.set_visible(False)
    for axes, rows in zip(grid, panels + empty, strict=False):
        axes.set_title(_heading(rows.iloc[0], train["grid"].nunique()))
    for axes, rows in zip(grid, panels, strict=False):
        here = lost[(lost[PLACE] == rows[PLACE].iloc[0]).all(axis=1)]
        drawn = _keys(rows, ["method", "sparsity"])
        _panel(axes, rows, here[~_keys(here, ["method", "sparsity"]).isin(drawn)], errors)
    for axes, rows in zip(grid[len(panels) :], empty, strict=False):
        style.empty_panel(axes, style.why_empty(rows))
    _legend(figure, scores, panels, errors)
    style.finish(figure)
    trained = "Learning rates were chosen on another part of the held-out data." if (scores["trials"] > 1).any() else ""
    style.footer(figure, scores, "Off the scale: at the edge, with its value.", trained, style.missing_remark(lost))
    return figure
