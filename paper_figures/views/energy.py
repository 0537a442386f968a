"""Energy of a generated token, dense and ours."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from paper_figures.views import _decoding as decoding
from paper_figures.views import _style as style
from paper_figures.views._kernels import block_label

TITLE = "Energy of a token"
CATEGORY = "Inference"
SUITES = ("inference",)


def draw(table: pd.DataFrame) -> Figure:
    """Draws a panel for each model: joules a token by sparsity, a line for each number of sequences; dense as bars."""
    rows = decoding.timed(table)
    known = decoding.speed_ups(rows, "energy")
    models = decoding.cases(known)
    if not models:
        return style.not_run(TITLE, decoding.why_empty(table))
    figure = style.new_figure(style.DOUBLE if len(models) > 1 else style.COLUMN, 2.6)
    grid = figure.subplots(1, len(models), squeeze=False)[0]
    counts = sorted({int(count) for count in known["tokens"]})
    for axes, (model, block) in zip(grid, models, strict=True):
        found = known[(known["model"] == model) & (known["block"] == block)]
        # One prompt is enough: the energy of a step depends little on it.
        found = found[found["prompt"] == found["prompt"].min()]
        colour = style.model_colour(model)
        for tokens, line in found.groupby("tokens", sort=True):
            marker = style.MARKER_SHAPES[counts.index(int(tokens)) % len(style.MARKER_SHAPES)]
            means = line.groupby("sparsity")[["ours", "dense"]].mean()
            places = [style.sparsity_place(sparsity) for sparsity in means.index]
            axes.plot(places, means["ours"].to_list(), color=colour, marker=marker, markerfacecolor="white")
            axes.plot(places, means["dense"].to_list(), color=style.INK, linestyle=(0, (4, 2)), marker=marker,
                      markersize=3)  # fmt: skip
            axes.annotate(f"{line['ratio'].max():.2f}×", (places[-1], means["ours"].iloc[-1]), fontsize=5.5,
                          textcoords="offset points", xytext=(4, -2), color=style.MUTED)  # fmt: skip
        axes.set_yscale("log")
        axes.set_title(f"{style.model_label(model)}, block {block_label(block)}")
        style.sparsity_axis(axes, found["sparsity"])
    grid[0].set_ylabel("joules a token")
    entries = [style.handle("ours", linestyle="-"), style.handle("dense, compiled", linestyle=(0, (4, 2)))]
    entries += [
        style.handle(f"{count} sequence{'s' if count > 1 else ''}", marker=style.MARKER_SHAPES[place])
        for place, count in enumerate(counts)
    ]
    style.legend_above(figure, entries)
    style.finish(figure)
    idle = rows[rows["metric"] == "power_idle"]["value"]
    remark = f"Idle, the GPU takes {idle.median():.0f} W; nothing is subtracted for it." if len(idle) else ""
    style.footer(figure, rows[rows["metric"] == "energy"], "Energy of the whole GPU. " + remark)
    return figure
