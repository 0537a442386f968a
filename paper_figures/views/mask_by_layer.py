"""Where the live blocks are: their share by layer and matrix, and the hidden blocks left, from the last masks."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from blast.experiment.analysis.comparison import missing, without_execution_variants
from blast.experiment.analysis.live_blocks import LiveBlocks, live_blocks
from blast.experiment.analysis.recipe import variant_of
from blast.experiment.analysis.trials import chosen_trials
from blast.experiment.records.table import one_machine
from blast.sparsity.config import METHOD_DETAILS
from paper_figures.views import _style as style
from paper_figures.views._titles import start_and_grid

TITLE = "Live blocks by layer"
CATEGORY = "Masks"
SUITES = ("train",)
COLUMNS = 3
LOOKS = (
    ("#D55E00", "o", "-"), ("#0072B2", "s", (0, (4, 1.5))), ("#009E73", "^", (0, (1, 1.2))), ("#CC79A7", "D", "-"),
    ("#E69F00", "v", "-"), ("#56B4E9", "P", "-"), ("#6b6b6b", "X", "-"),
)  # fmt: skip
BARS = "#dddddd"
# Runs that are alike in these have panels of the same title; they say which block they have.
LIKE = ["grid", "model", "dataset", "start", "method", "sparsity"]


def _chosen(table: pd.DataFrame) -> pd.DataFrame:
    """For each grid, model, dataset, start, method and sparsity the run without a lever, of the lowest seed."""
    finding = [name for name, method in METHOD_DETAILS.items() if method.finds_masks]
    done = table[(table["status"] == "ok") & (table["suite"] == "train") & table["step"].isna()]
    done = one_machine(done[done["method"].isin(finding)]).drop_duplicates(["grid", "hardware", "point"])
    known = table.attrs.get("last_masks", {})
    here = [(row.grid, row.hardware, row.point) in known for row in done.itertuples(index=False)]
    done = done[pd.Series(here, index=done.index, dtype=bool)]
    done = done.assign(length=[len(variant_of(point)) for point in done["point"]], longest=-done["trained"].fillna(0))
    done = done.sort_values(["length", "longest", "seed", "point"], kind="stable")
    # Blocks by size, not by name.
    done = done.assign(area=[math.prod(map(int, str(block).split("x"))) for block in done["block"]])
    return done.drop_duplicates([*LIKE, "block"]).sort_values([*LIKE, "area", "block"], kind="stable")


def _panel(
    axes: Axes, point: pd.Series, layers: list[LiveBlocks], names: list[str], grids: int, with_block: bool
) -> None:
    places = [entry.layer for entry in layers]
    hidden = [100 * entry.hidden / entry.hidden_total for entry in layers]
    axes.bar(places, hidden, width=0.8, color=BARS, zorder=1)
    for entry, height in zip(layers, hidden, strict=True):
        axes.text(entry.layer, height, f"{entry.hidden}", ha="center", va="bottom", fontsize=4.8, color=style.MUTED)
    for name, (colour, marker, line) in zip(names, LOOKS, strict=False):
        shares = [100 * entry.shares.get(name, float("nan")) for entry in layers]
        axes.plot(places, shares, color=colour, marker=marker, markersize=2.6, linewidth=0.9, linestyle=line, zorder=3)
    axes.axhline(100 * (1 - point["sparsity"]), color=style.INK, linewidth=0.6, linestyle=":", zorder=2)
    axes.set_ylim(0, min(112.0, 1.25 * max([*hidden, *(100 * max(entry.shares.values()) for entry in layers)])))
    axes.set_xticks(places[:: -(-len(places) // 12)])
    block = f"blocks of {' × '.join(dict.fromkeys(point['block'].split('x')))}: " if with_block else ""
    axes.set_xlabel(f"layer ({block}{layers[0].hidden_total} hidden blocks)")
    start, grid = start_and_grid(point, grids)
    heading = (
        f"{style.model_label(point['model'])}{start}, {style.dataset_label(point['dataset'])}\n"
        f"{style.method_label(point['method'])} {100 * point['sparsity']:g} %{grid}"
    )
    axes.set_title(heading, fontsize=6.5)


def draw(table: pd.DataFrame) -> Figure:
    """Draws a panel for each model, dataset, method and sparsity whose last masks are known."""
    files = table.attrs
    table = without_execution_variants(chosen_trials(table))
    table.attrs = files
    train = table[table["suite"] == "train"]
    chosen = _chosen(table)
    found = [(point, layers) for _, point in chosen.iterrows() if (layers := live_blocks(table, point))]
    if not found:
        return style.not_run(TITLE, style.why_empty(train))
    count, columns = -(-len(found) // COLUMNS), min(COLUMNS, len(found))
    figure = style.new_figure(style.DOUBLE, 1.95 * count + 0.6)
    grid = figure.subplots(count, columns, squeeze=False).ravel()
    for axes in grid[len(found) :]:
        axes.set_visible(False)
    entries = []
    for axes, (point, layers) in zip(grid, found, strict=False):
        names = list(layers[0].shares)
        blocks = chosen[(chosen[LIKE] == point[LIKE]).all(axis=1)]["block"].nunique()
        _panel(axes, point, layers, names, chosen["grid"].nunique(), blocks > 1)
        entries += [(number, name) for number, name in enumerate(names[: len(LOOKS)])]
    for axes in grid[::columns]:
        axes.set_ylabel("live blocks (%)")
    roles: dict[int, list[str]] = {}
    for number, name in dict.fromkeys(entries):
        roles.setdefault(number, []).append(name)
    handles = []
    for number in sorted(roles):
        colour, marker, line = LOOKS[number]
        handles.append(style.handle(" / ".join(roles[number]), color=colour, marker=marker, linestyle=line))
    handles.append(Patch(color=BARS, label="hidden blocks left (number above)"))
    handles.append(style.handle("1 - sparsity", color=style.INK, linestyle=":", linewidth=0.6))
    style.legend_above(figure, handles)
    style.finish(figure)
    lost = missing(train)
    without = len(chosen) - len(found)
    remark = f"{without} runs of unknown architectures are left out." if without else ""
    style.footer(figure, chosen, "The lowest seed of each.", remark, style.missing_remark(lost))
    return figure
