"""Time of the fused MLP by token count, ours and dense: a panel for each curve. Counts that are too slow are marked."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paper_figures.views import _kernels as kernels
from paper_figures.views import _style as style

TITLE = "Time of the block-sparse MLP kernels by token count"
CATEGORY = "Kernels"
SUITES = ("kernels",)
COLUMNS = 3
# Two runs of one config differ by up to 2 %.
NOISE = 1.02
DENSE = "dense_eager"


class Slow(NamedTuple):
    """A token count that takes longer than the next larger one that was timed, and how many times as long."""

    tokens: int
    larger: int
    ratio: float


def curves(table: pd.DataFrame) -> pd.DataFrame:
    """Latencies in ms of ours and of eager dense, for the points of one GPU that timed a curve.

    Returns:
        The rows of `table`, with `tied` as a plain bool. Dense has no masks, so its `tied` is False. One row for each
        point, provider, mask sharing and token count.
    """
    rows = kernels.kernel_rows(table)
    rows = rows[rows["point"].isin(kernels.curve_points(rows))]
    rows = kernels.with_masks(rows[(rows["metric"] == "latency") & (rows["status"] == "ok")])
    rows = rows[rows["provider"].isin(["ours", DENSE]) & (rows["mask"] == kernels.UNIFORM)]
    return rows.drop_duplicates(["point", "provider", "tied", "tokens"])


def slow_counts(line: pd.DataFrame) -> list[Slow]:
    """The token counts of one line that are slower than the next larger count, by more than `NOISE`."""
    line = line.sort_values("tokens")
    tokens, times = [int(count) for count in line["tokens"]], list(line["value"])
    pairs = zip(tokens, tokens[1:], times, times[1:], strict=False)
    return [Slow(here, there, ours / larger) for here, there, ours, larger in pairs if ours > NOISE * larger]


def _panel(axes: Axes, lines: pd.DataFrame, colour: str) -> None:
    dense = lines[lines["provider"] == DENSE].sort_values("tokens")
    axes.plot(dense["tokens"], 1e3 * dense["value"], color=style.INK, linewidth=0.9, marker=".", markersize=2.5)
    ours = lines[lines["provider"] == "ours"]
    for tied, line in ours.groupby("tied"):
        line = line.sort_values("tokens")
        look = (0, (4, 2)) if tied else "-"
        axes.plot(line["tokens"], 1e3 * line["value"], color=colour, linestyle=look, marker=".", markersize=2.5)
        times = dict(zip(line["tokens"], line["value"], strict=True))
        for slow in slow_counts(line):
            axes.plot(
                slow.tokens, 1e3 * times[slow.tokens], marker="o", markersize=6, markerfacecolor="none",
                markeredgecolor=style.FAMILIES["qwen"], zorder=4,
            )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = [1, 16, 128, 1024, 8192]
    axes.set_xticks(ticks, [str(count) for count in ticks])
    axes.minorticks_off()


def draw(table: pd.DataFrame) -> Figure:
    """Draws a panel for each curve. Blocks are of gate and up."""
    found = curves(table)
    if found.empty:
        return style.not_run(TITLE, kernels.why_empty(table))
    points = _in_order(found)
    columns = min(COLUMNS, len(points))
    count = -(-len(points) // columns)
    figure = style.new_figure(style.DOUBLE if columns > 1 else style.COLUMN, 1.75 * count + 0.7)
    panels = figure.subplots(count, columns, squeeze=False)
    remarks = []
    for axes, point in zip(panels.ravel(), points, strict=False):
        lines = found[found["point"] == point]
        first = lines[lines["provider"] == "ours"].iloc[0]
        name = f"{style.model_label(first.model)}, {100 * first.sparsity:g} %, block {kernels.block_label(first.block)}"
        _panel(axes, lines, style.model_colour(first.model))
        axes.set_title(name, fontsize=6.5)
        for tied, line in lines[lines["provider"] == "ours"].groupby("tied"):
            remarks += [f"{name}{', shared' if tied else ''}: {_words(slow)}" for slow in slow_counts(line)]
    for axes in panels.ravel()[len(points) :]:
        axes.set_visible(False)
    for axes in panels[:, 0]:
        axes.set_ylabel("time (µs)")
    for axes in panels.ravel()[max(0, len(points) - columns) : len(points)]:
        axes.set_xlabel("tokens")
    entries = [
        style.handle("ours", linestyle="-"),
        style.handle("dense", linestyle="-", color=style.INK),
        style.handle(
            "slower than the next larger count", marker="o", markerfacecolor="none",
            markeredgecolor=style.FAMILIES["qwen"],
        ),
    ]  # fmt: skip
    if found["tied"].any():
        entries.insert(1, style.handle("ours, gate and up share a mask", linestyle=(0, (4, 2))))
    style.legend_above(figure, entries)
    style.finish(figure)
    verdict = f"Slower than the next larger count by more than 2 %: {'; '.join(remarks)}." if remarks else (
        "No count is slower than the next larger one by more than 2 %."
    )  # fmt: skip
    baseline = "Dense is eager cuBLAS with random weights in the same run. Masks are uniform at random."
    style.footer(figure, found, baseline, verdict, kernels.lost_points(table))
    return figure


def _words(slow: Slow) -> str:
    return f"{slow.tokens} takes {slow.ratio:.2f} times as long as {slow.larger}"


def _in_order(found: pd.DataFrame) -> list[str]:
    """Points by size of the model, then block, then sparsity."""
    models, blocks = kernels.by_size(found["model"]), kernels.by_area(found["block"])
    one = found[found["provider"] == "ours"].drop_duplicates("point")
    places = {
        row.point: (models.index(row.model), blocks.index(row.block), -row.sparsity, row.point)
        for row in one.itertuples(index=False)
    }
    return sorted(places, key=lambda point: places[point])
