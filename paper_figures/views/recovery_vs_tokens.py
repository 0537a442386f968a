"""Loss of pruned pretrained models by the tokens they were trained on, with a power law and its error."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from blast.experiment.analysis.comparison import missing
from blast.experiment.analysis.recovery import Recovery, recoveries
from blast.experiment.analysis.trials import chosen_trials
from paper_figures.views import _style as style

TITLE = "Recovery by tokens"
CATEGORY = "Quality"
SUITES = ("train",)
LIMIT = 2.25
COLUMNS = 3
LINES = {"blast": "-", "rigl_swap": (0, (4, 1.5)), "random": (0, (1, 1.2))}
# How far the fits are drawn beyond the last point.
BEYOND = 8.0


def _draw(axes: Axes, found: Recovery) -> None:
    first, rows = found.first, found.rows
    colour = style.sparsity_colour(first.sparsity)
    taught = isinstance(first.teacher, str)
    marker = style.METHODS.get(first.method, style.Mark("", "X")).marker
    axes.plot(rows["trained"], rows["relative"], linestyle="none", marker=marker, color=colour, markeredgewidth=0.9,
              markerfacecolor="white" if taught else colour, zorder=4)  # fmt: skip
    for row in rows.itertuples(index=False):
        if row.seeds > 1 and row.relative_lowest > 0:
            axes.plot([row.trained] * 2, [row.relative_lowest, row.relative_highest], color=colour, linewidth=3.2,
                      alpha=0.4, solid_capstyle="butt", zorder=3)  # fmt: skip
    if found.law is None:
        return
    places = np.geomspace(min(found.law.tokens), BEYOND * max(found.law.tokens), 60)
    line = LINES.get(first.method, (0, (3, 1, 1, 1)))
    axes.plot(places, found.law.loss(places), color=colour, linewidth=1.0, linestyle=line, zorder=2)
    if not math.isnan(found.law.deviation):
        axes.fill_between(places, *found.law.band(places), color=colour, alpha=0.12, linewidth=0, zorder=1)


def _panel(axes: Axes, group: list[Recovery]) -> None:
    for found in group:
        _draw(axes, found)
    shown = pd.concat([found.rows for found in group])
    axes.set_xscale("log")
    axes.set_yscale("log")
    low, high = shown["relative"].where(shown["relative"] > 0).min(), shown["relative"].max()
    axes.set_ylim(min(0.7 * LIMIT, 0.7 * low), max(1.6 * high, 1.6 * LIMIT))
    axes.set_xlim(0.7 * shown["trained"].min(), BEYOND * shown["trained"].max())
    axes.axhline(LIMIT, color="#B22222", linewidth=0.8, linestyle=":", zorder=1)
    axes.annotate(f"{LIMIT} %", (0.01, LIMIT), xycoords=("axes fraction", "data"), xytext=(0, 1.5),
                  textcoords="offset points", fontsize=5.5, color="#B22222")  # fmt: skip
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("tokens trained on")
    first = group[0].first
    axes.set_title(f"{style.model_label(first.model)}\n{style.dataset_label(first.dataset)}")


def _tokens(count: float) -> str:
    if math.isinf(count):
        return "more than any"
    size, unit = next(
        (size, unit) for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (0.0, "")) if count >= size
    )
    scaled = float(f"{count / (size or 1.0):.2g}")
    return f"{scaled:g}{unit}"


def _needed(found: Recovery) -> str:
    """How many tokens 2.25 % would take."""
    first = found.first
    name = f"{style.method_label(first.method)}{', taught' * isinstance(first.teacher, str)} {100 * first.sparsity:g} %"
    if found.rows["relative"].iloc[-1] <= LIMIT:
        return f"{name} is there"
    if found.law is None:
        return f"{name} no fit"
    middle, low, high = found.law.tokens_for(LIMIT)
    error = "no error known" if math.isnan(low) else f"{_tokens(low)} to {_tokens(high)}"
    return f"{name} {_tokens(middle)} ({error})"


def draw(table: pd.DataFrame) -> Figure:
    """Draws a panel for each pretrained model and dataset, with a line for each method and sparsity."""
    table = chosen_trials(table)
    found = recoveries(table)
    train = table[table["suite"] == "train"]
    lost = missing(train)
    lost = lost[lost["start"] == "pretrained"]
    if not found:
        return style.not_run(TITLE, style.why_empty(train[train["start"] == "pretrained"]))
    groups: dict[tuple, list[Recovery]] = {}
    for entry in found:
        first = entry.first
        groups.setdefault((first.grid, first.model, first.dataset, first.block), []).append(entry)
    count = -(-len(groups) // COLUMNS)
    columns = -(-len(groups) // count)
    figure = style.new_figure(style.DOUBLE if columns > 1 else style.COLUMN, 2.3 * count + 0.85)
    grid = figure.subplots(count, columns, squeeze=False).ravel()
    for axes in grid[len(groups) :]:
        axes.set_visible(False)
    blocks = len({key[:3] for key in groups}) < len(groups)
    for axes, (key, group) in zip(grid, groups.items(), strict=False):
        _panel(axes, group)
        if blocks:
            axes.set_title(f"{axes.get_title(loc='left')}, block {str(key[3]).split('x')[0]}")
    for axes in grid[::columns]:
        axes.set_ylabel("loss relative to dense (%)")
    firsts = [entry.first for entry in found]
    entries = [
        style.handle(f"{100 * sparsity:g} %", linestyle="-", color=style.sparsity_colour(sparsity))
        for sparsity in sorted({first.sparsity for first in firsts})
    ]
    for method, taught in sorted({(first.method, isinstance(first.teacher, str)) for first in firsts}):
        marker = style.METHODS.get(method, style.Mark("", "X")).marker
        entries.append(style.handle(
            style.method_label(method) + ", taught" * taught, marker=marker, linestyle=LINES.get(method, "-"),
            markerfacecolor="white" if taught else style.MUTED,
        ))  # fmt: skip
    entries.append(Patch(color=style.MUTED, alpha=0.2, linewidth=0, label="95 % band of the power law"))
    style.legend_above(figure, entries)
    style.finish(figure)
    shown = pd.concat([entry.rows for entry in found])
    needed = "; ".join(
        f"{style.model_label(group[0].first.model)}: {', '.join(map(_needed, group))}" for group in groups.values()
    )
    style.footer(figure, shown, f"Tokens for {LIMIT} %: {needed}.", style.missing_remark(lost))
    return figure
