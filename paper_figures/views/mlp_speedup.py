"""Speed-up of the sparse MLP over dense; a row of panels for each machine."""

from __future__ import annotations

import math
from collections import Counter

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from blast.experiment.analysis.comparison import missing
from blast.experiment.analysis.ratio import ratios
from paper_figures.views import _style as style

TITLE = "Speed of the sparse MLP"
CATEGORY = "Kernels"
SUITES = ("mlp",)
COLUMNS = 4
BLOCK_STYLES = ("-", (0, (4, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))


def _panel(axes: Axes, rows: pd.DataFrame, colours: dict[int, tuple], styles: dict[str, object]) -> None:
    ends = []
    for (tokens, block), line in rows.groupby(["tokens", "block"], dropna=False, sort=True):
        line = line.groupby("sparsity")[["ratio", "low", "high"]].median()
        places = [style.sparsity_place(value) for value in line.index]
        axes.plot(
            places, line["ratio"], color=colours[tokens], linestyle=styles[block], marker="o", markersize=3, zorder=3
        )
        for place, row in zip(places, line.itertuples(), strict=True):
            if not math.isnan(row.low):
                axes.plot([place, place], [row.low, row.high], color=colours[tokens], linewidth=0.7, zorder=2)
        ends.append(line["ratio"].iloc[-1])
    axes.axhline(1, color=style.INK, linewidth=0.7, linestyle=(0, (4, 2)))
    axes.set_yscale("log", base=2)
    low, high = min(0.8, rows["ratio"].min() * 0.8), max(2.2, rows["ratio"].max() * 1.3)
    ticks = [2.0**power for power in range(math.floor(math.log2(low)), math.ceil(math.log2(high)) + 1)]
    ticks = [tick for tick in ticks if low <= tick <= high]
    axes.set_ylim(low, high)
    axes.set_yticks(ticks, [f"{tick:g}×" for tick in ticks])
    axes.minorticks_off()
    style.sparsity_axis(axes, rows["sparsity"])


def draw(table: pd.DataFrame) -> Figure:
    """Draws speed-ups over eager dense. Each panel is of one machine."""
    table = table[table["suite"] == "mlp"]
    found = ratios(table, "latency")
    found = found[(found["provider"] == "ours") & (found["sparsity"] > 0)]
    if found.empty:
        return style.not_run(TITLE, style.why_empty(table))
    panels = [(key, rows) for key, rows in found.groupby(["hardware", "model", "dtype", "grid"], sort=True)]
    # Timings of two grids are never averaged: they were taken at other times, with other settings.
    twice = {key for key, count in Counter(key[:3] for key, _ in panels).items() if count > 1}
    columns = min(COLUMNS, max(Counter(key[0] for key, _ in panels).values()))
    slots: list[tuple | None] = []
    for hardware in sorted(set(found["hardware"])):
        here = [panel for panel in panels if panel[0][0] == hardware]
        slots += [*here, *[None] * (-len(here) % columns)]
    count = len(slots) // columns
    width = style.COLUMN if columns == 1 else style.DOUBLE * min(1.0, 0.25 + 0.25 * columns)
    figure = style.new_figure(width, 1.95 * count + 0.6)
    grid = figure.subplots(count, columns, squeeze=False)
    tokens = sorted(set(found["tokens"]))
    palette = sns.color_palette("crest", len(tokens))
    colours = dict(zip(tokens, palette, strict=True))
    blocks = sorted(set(found["block"]), key=lambda name: [int(side) for side in name.split("x")])
    styles = {block: BLOCK_STYLES[place % len(BLOCK_STYLES)] for place, block in enumerate(blocks)}
    for axes, slot in zip(grid.ravel(), slots, strict=True):
        if slot is None:
            axes.set_visible(False)
            continue
        (hardware, model, dtype, grid_name), rows = slot
        _panel(axes, rows, colours, styles)
        name = f" ({grid_name})" if (hardware, model, dtype) in twice else ""
        axes.set_title(f"{style.model_label(model)} MLP, {dtype}{name}\non {style.hardware_label(hardware)}")
    for axes in grid[:, 0]:
        axes.set_ylabel("speed-up over dense")
    entries = [
        style.handle(f"{count} token{'s' if count > 1 else ''}", linestyle="-", marker="o", color=colours[count])
        for count in tokens
    ]
    entries += [style.handle(f"block {block.replace('x', ' × ')}", linestyle=styles[block]) for block in blocks]
    style.legend_above(figure, entries)
    style.finish(figure)
    remark = "" if found["gpu"].all() else "CPU timings say nothing about a GPU."
    baseline = "Over eager PyTorch with dense random weights; bars from the 20 % and 80 % quantiles of both."
    style.footer(figure, found, baseline, remark, style.missing_remark(missing(table)))
    return figure
