"""Loss relative to dense against sparsity, with the paper's 2.25 % line."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from blast.experiment.analysis.comparison import missing, summarise
from paper_figures import _style as style

TITLE = "Loss relative to dense"
METRICS = ("bits_per_byte", "top1", "acc")
LIMIT = 2.25


def _panel(axes: Axes, rows: pd.DataFrame, markers: dict[str, str]) -> None:
    for _, line in rows.groupby(["grid", "model", "dataset", "block", "config_family"], dropna=False, sort=True):
        line = line.sort_values("sparsity")
        first = line.iloc[0]
        colour, marker = style.model_colour(first["model"]), markers[first["dataset"]]
        places = line["sparsity"].map(style.sparsity_place)
        axes.plot(places, line["relative"], color=colour, zorder=2)
        for place, row in zip(places, line.itertuples(index=False), strict=True):
            if row.seeds > 1:
                ends = [row.relative_lowest, row.relative_highest]
                axes.plot([place, place], ends, color=colour, linewidth=3.2, alpha=0.4, solid_capstyle="butt", zorder=2)
            # Hollow: the gap to dense is smaller than the spread over seeds.
            hollow = row.within_noise is True
            axes.plot(place, row.relative, marker=marker, color=colour, markeredgewidth=1.0, zorder=3,
                      markerfacecolor="white" if hollow else colour)  # fmt: skip
    axes.axhline(0, color=style.INK, linewidth=0.6)
    axes.axhline(LIMIT, color=style.INK, linestyle=(0, (4, 2)), linewidth=0.8)
    axes.annotate(f"{LIMIT} %", (0.005, LIMIT), xycoords=("axes fraction", "data"), xytext=(0, 1.5),
                  textcoords="offset points", fontsize=6, va="bottom", ha="left")  # fmt: skip
    style.sparsity_axis(axes, rows["sparsity"])
    first = rows.iloc[0]
    name = style.metric_label(first["metric"], first["task"]).removesuffix(" (%)")
    axes.set_title(name[0].upper() + name[1:])


def draw(table: pd.DataFrame) -> Figure:
    """Draws a panel for each metric. Scores at chance have no relative loss and are left out."""
    summary = summarise(table, METRICS)
    blast = summary[summary["method"] == "blast"]
    blast = blast.assign(config_family=blast["config"].str.replace(r"\.s[0-9p]+\.", ".", regex=True))
    rows = blast[blast["relative"].notna()]
    if rows.empty:
        return style.not_run(TITLE, style.why_empty(table))
    panels = [panel for _, panel in rows.groupby(["metric", "task"], dropna=False)]
    panels.sort(key=lambda panel: METRICS.index(panel["metric"].iloc[0]))
    figure = style.new_figure(style.DOUBLE if len(panels) > 1 else style.COLUMN, 2.55)
    markers = style.dataset_markers(rows["dataset"])
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, panel in zip(grid, panels, strict=True):
        _panel(axes, panel, markers)
    grid[0].set_ylabel("loss relative to dense (%)")
    series = rows[["model", "dataset"]].drop_duplicates().itertuples(index=False)
    entries = [
        style.handle(f"{style.model_label(model)} · {style.dataset_label(dataset)}", linestyle="-",
                     marker=markers[dataset], color=style.model_colour(model))
        for model, dataset in series
    ]  # fmt: skip
    entries.append(style.handle("within seed noise", marker="o", markerfacecolor="white"))
    if (rows["seeds"] > 1).any():
        entries.append(style.seed_handle())
    style.legend_above(figure, entries)
    style.finish(figure)
    chance = int(blast["at_chance"].astype(bool).sum())
    remarks = [f"{chance} scores at chance are left out."] if chance else []
    unknown = int(rows["within_noise"].isna().sum())
    remarks += [f"{unknown} points and their dense runs have one seed, so their noise is unknown."] if unknown else []
    lost = missing(table[(table["suite"] == "train") & table["method"].isin(["dense", "blast"])])
    style.footer(figure, rows, *remarks, style.missing_remark(lost))
    return figure
