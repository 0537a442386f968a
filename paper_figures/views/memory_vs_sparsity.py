"""Measured memory of the sparse models relative to dense, against sparsity."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from blast.experiment.analysis.comparison import missing
from blast.experiment.analysis.ratio import ratios
from blast.experiment.records.table import one_machine
from paper_figures.views import _style as style

TITLE = "Memory against sparsity"
CATEGORY = "Inference"
SUITES = ("train",)
PANELS = {"mlp_bytes": "MLP weights", "weights_bytes": "All weights", "checkpoint_bytes": "Checkpoint on disk"}


def _panel(axes: Axes, rows: pd.DataFrame, looks: dict[tuple[str, str], dict[str, Any]], ideal: bool) -> None:
    known = sorted(set(rows["sparsity"]))
    if ideal:
        places = [style.sparsity_place(value) for value in known]
        axes.plot(
            places, [100 * (1 - value) for value in known], color=style.INK, linestyle=(0, (4, 2)), linewidth=0.8,
            zorder=4,
        )  # fmt: skip
    for (model, dataset), line in rows.groupby(["model", "dataset"], sort=True):
        # Seeds, grids and blocks of one model and sparsity differ by a few bytes only.
        share = (100 / line["ratio"]).groupby(line["sparsity"]).mean().sort_index()
        places = [style.sparsity_place(value) for value in share.index]
        axes.plot(places, share, **looks[model, dataset], zorder=3)
    axes.set_ylim(0, max(100.0, (100 / rows["ratio"]).max() * 1.05))
    style.sparsity_axis(axes, known)


def draw(table: pd.DataFrame) -> Figure:
    """Draws a panel for MLP weights, all weights and the checkpoint, in percent of dense."""
    train = table[table["suite"] == "train"]
    found = {metric: ratios(one_machine(train), metric) for metric in PANELS}
    found = {metric: rows[rows["method"] == "blast"] for metric, rows in found.items()}
    found = {metric: rows for metric, rows in found.items() if len(rows)}
    if not found:
        return style.not_run(TITLE, style.why_empty(train))
    shown = pd.concat(found.values())
    figure = style.new_figure(style.DOUBLE if len(found) > 1 else style.COLUMN, 2.5)
    grid = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
    looks = style.series_looks(shown[["model", "dataset"]].itertuples(index=False, name=None))
    for axes, (metric, rows) in zip(grid, found.items(), strict=True):
        _panel(axes, rows, looks, ideal=metric == "mlp_bytes")
        axes.set_title(PANELS[metric])
    grid[0].set_ylabel("bytes (% of dense)")
    entries = [
        style.handle(f"{style.model_label(model)} · {style.dataset_label(dataset)}", linestyle="-", **look)
        for (model, dataset), look in looks.items()
    ]
    if "mlp_bytes" in found:
        entries.append(style.handle("share of weights kept", linestyle=(0, (4, 2)), linewidth=0.8, color=style.INK))
    style.legend_above(figure, entries)
    style.finish(figure)
    lost = missing(train[train["method"].isin(["dense", "blast"])])
    style.footer(
        figure, shown, "Counted on the models in their sparse state, indices included.", style.missing_remark(lost)
    )
    return figure
