"""Roofline of the kernels: the share of the bound that they reach, and which bound limits."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paper_figures.views import _kernels as kernels
from paper_figures.views import _style as style

TITLE = "Roofline of the block-sparse MLP kernels"
CATEGORY = "Kernels"
SUITES = ("kernels",)
COLUMNS = 4
BOUNDS = {"memory": "o", "L2": "s", "arithmetic": "^", "launches": "X"}


def _panel(axes: Axes, rows: pd.DataFrame, tokens: list[int]) -> None:
    for sparsity, line in rows.groupby("sparsity"):
        line = line.sort_values("tokens").drop_duplicates("tokens")
        places = [tokens.index(count) for count in line["tokens"]]
        colour = style.sparsity_colour(sparsity)
        axes.plot(places, 100 * line["value"], color=colour, linewidth=1.0, zorder=2)
        for place, row in zip(places, line.itertuples(), strict=True):
            axes.plot(place, 100 * row.value, marker=BOUNDS.get(row.bound, "D"), color=colour, markersize=3.5, zorder=3)
    axes.axhline(100, color=style.INK, linewidth=0.7, linestyle=(0, (4, 2)))
    axes.set_ylim(0, max(108.0, 105 * rows["value"].max()))
    axes.set_xlim(-0.3, len(tokens) - 0.7)
    axes.set_xticks(range(len(tokens)), [str(count) for count in tokens])


def draw(table: pd.DataFrame) -> Figure:
    """Draws a panel for each model, with separate masks for gate and up.

    Of its blocks, the one with most timings is drawn; of several such, the largest.
    """
    found = kernels.fractions(table)
    found = found[~found["tied"]]
    if found.empty:
        return style.not_run(TITLE, kernels.why_empty(table))
    models, tokens = kernels.by_size(found["model"]), sorted(set(found["tokens"]))
    columns = min(COLUMNS, len(models))
    lines = -(-len(models) // columns)
    figure = style.new_figure(style.DOUBLE if columns > 1 else style.COLUMN, 1.5 * lines + 0.7)
    panels = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axes, model in zip(panels.ravel(), models, strict=False):
        rows = found[found["model"] == model]
        timed = rows.drop_duplicates(["block", "sparsity", "tokens"])["block"].value_counts()
        block = max(kernels.by_area(rows["block"]), key=timed.get)
        _panel(axes, rows[rows["block"] == block], tokens)
        axes.set_title(f"{style.model_label(model)}\nblock {kernels.block_label(block)}", fontsize=6.5)
    for axes in panels.ravel()[len(models) :]:
        axes.set_visible(False)
    for axes in panels[:, 0]:
        axes.set_ylabel("share of the bound (%)")
    for axes in panels.ravel()[max(0, len(models) - columns) : len(models)]:
        axes.set_xlabel("tokens")
    entries = [
        style.handle(f"{100 * value:g} % sparse", linestyle="-", color=style.sparsity_colour(value))
        for value in sorted(set(found["sparsity"]))
    ]
    entries += [
        style.handle(f"bound by {bound}", marker=BOUNDS[bound]) for bound in BOUNDS if bound in set(found["bound"])
    ]
    style.legend_above(figure, entries)
    style.finish(figure)
    style.footer(
        figure,
        found,
        "Bound: the longest of four times, for bytes from memory, bytes from L2, arithmetic and launches. The rates of "
        "memory and arithmetic were measured in the same process, that of L2 once on an H100. Above 100 %, the L2 "
        "cache was faster than that.",
        kernels.lost_points(table),
    )
    return figure
