"""Speed-up of the fused block-sparse MLP over dense on a GPU: heat maps of sparsity and tokens by model and block."""

from __future__ import annotations

import itertools
import math

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paper_figures.views import _kernels as kernels
from paper_figures.views import _style as style

TITLE = "Speed-up of the block-sparse MLP kernels"
CATEGORY = "Kernels"
SUITES = ("kernels",)
# Logarithmic scale: blue is faster than dense, red slower, the middle is 1.
COLOURS = mpl.colormaps["RdYlBu"]
FASTEST, SLOWEST = 16.0, 0.25


def _colour(ratio: float) -> tuple[float, ...]:
    span = math.log(FASTEST) if ratio >= 1 else -math.log(SLOWEST)
    return COLOURS(0.5 + 0.42 * max(-1.0, min(1.0, math.log(ratio) / span)))


def _panel(axes: Axes, rows: pd.DataFrame, sparsities: list[float], tokens: list[int]) -> None:
    values = rows.groupby(["tokens", "sparsity"])["ratio"].median()
    for x, y in itertools.product(range(len(sparsities)), range(len(tokens))):
        ratio = values.get((tokens[y], sparsities[x]))
        if ratio is None:
            axes.text(x, y, "–", ha="center", va="center", fontsize=5.5, color=style.MUTED)
            continue
        axes.add_patch(mpl.patches.Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=_colour(ratio), linewidth=0))
        text = f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:.0f}"
        strong = ratio > 9 or ratio < 0.35
        axes.text(x, y, text, ha="center", va="center", fontsize=5.5, color="white" if strong else style.INK)
    axes.set_xlim(-0.5, len(sparsities) - 0.5)
    axes.set_ylim(len(tokens) - 0.5, -0.5)
    axes.set_xticks(range(len(sparsities)), [f"{100 * value:g}" for value in sparsities])
    axes.set_yticks(range(len(tokens)), [str(count) for count in tokens])
    axes.tick_params(length=0, pad=2, labelsize=5.5)
    axes.grid(False)


def draw(table: pd.DataFrame) -> Figure:
    """Draws ours over eager dense. The largest block has a second column, with one mask shared by gate and up."""
    found = kernels.plain(kernels.speed_ups(table))
    if found.empty:
        return style.not_run(TITLE, kernels.why_empty(table))
    found = _one_block_per_panel(found)
    models, blocks = kernels.by_size(found["model"]), kernels.by_area(found["column"])
    columns = [(block, False) for block in blocks]
    shared = found[found["tied"]]
    if not shared.empty:
        columns.insert(1, (kernels.by_area(shared["column"])[0], True))
    sparsities, tokens = sorted(set(found["sparsity"])), sorted(set(found["tokens"]))
    width = max(style.COLUMN, min(style.DOUBLE, 0.55 + (0.26 * len(sparsities) + 0.12) * len(columns)))
    figure = style.new_figure(width, 0.75 + len(models) * (0.13 * len(tokens) + 0.12))
    panels = figure.subplots(len(models), len(columns), squeeze=False, sharex=True, sharey=True)
    for model, line in zip(models, panels, strict=True):
        for (block, is_shared), axes in zip(columns, line, strict=True):
            if model == models[0]:
                axes.set_title(
                    kernels.block_label(block) + (", shared" if is_shared else ""), fontsize=6.5, loc="center"
                )
            same = (found["model"] == model) & (found["column"] == block) & (found["tied"] == is_shared)
            if found[same].empty:
                # The last row of panels shows the axis labels, even of an empty panel.
                axes.set_axis_off() if model != models[-1] else axes.spines[:].set_visible(False)
                axes.grid(False)
                continue
            _panel(axes, found[same], sparsities, tokens)
            if found[same]["block"].iloc[0] != block:
                axes.text(1.02, 1, "*", ha="left", va="top", fontsize=7, transform=axes.transAxes)
        first = next(axes for axes in line if axes.patches)
        for axes in line:
            axes.tick_params(labelleft=axes is first, left=False)
        name = style.model_label(model).replace(" ", "\n", 1)
        line[0].text(-0.36, 0.5, name, ha="right", va="center", fontsize=6, transform=line[0].transAxes)
    for axes in panels[-1]:
        axes.set_xticks(range(len(sparsities)), [f"{100 * value:g}" for value in sparsities])
        axes.tick_params(length=0, pad=2, labelsize=5.5, labelbottom=True)
        axes.set_xlabel("sparsity (%)", fontsize=6)
    figure.suptitle("blocks, out × in", fontsize=7, fontweight="bold")
    style.footer(
        figure,
        found,
        "Times faster than eager cuBLAS with dense random weights in the same run. Masks are uniform at random; "
        "shared: gate and up share a mask; *: the down projection has blocks of in × out. Rows of a panel: numbers of "
        "tokens. Blue is faster, red slower; – was not run.",
        kernels.lost_points(table),
    )
    return figure


def _one_block_per_panel(found: pd.DataFrame) -> pd.DataFrame:
    """Adds the `column` of each row. Rows with transposed blocks stay only if the plain ones were not timed."""
    found = found.assign(column=[kernels.gate_up_block(block) for block in found["block"]])
    plain = found["column"] == found["block"]
    place = pd.MultiIndex.from_frame(found[["model", "column"]])
    return found[plain | ~place.isin(place[plain])]
