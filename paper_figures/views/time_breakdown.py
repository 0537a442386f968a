"""Time of an optimisation step by part: attention, MLP, optimizer, mask updates, and the rest."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from blast.experiment.analysis import pretraining
from paper_figures.views import _style as style
from paper_figures.views import _training as training

TITLE = "Where a training step goes"
CATEGORY = "Training"
SUITES = ("training_step",)
PARTS = {
    "time_attention": ("attention", "#0072B2"),
    "time_mlp": ("MLP", "#D55E00"),
    "time_optimizer": ("clipping and optimizer", "#009E73"),
    "time_other": ("the rest", "#BBBBBB"),
}
UPDATES = ("mask updates, 1 in 100 steps", "#CC79A7")
WHOLE = ("whole step, parts not measured", "#777777")


def _panel(axes: Axes, rows: pd.DataFrame) -> bool:
    """Draws a bar for each step. Returns whether the parts of some step were not timed."""
    whole = False
    sparse = pretraining.values(rows, "step_time", pretraining.OURS)
    dense = pretraining.values(rows, "time_mlp", pretraining.DENSE)
    updates = pretraining.values(rows, "time_mask_update", pretraining.OURS)
    bars = [("dense", pretraining.DENSE, max(dense))] if dense else []
    bars += [(f"{100 * sparsity:g} %", pretraining.OURS, sparsity) for sparsity in sorted(sparse)]
    for place, (_, provider, sparsity) in enumerate(bars):
        step = pretraining.values(rows, "step_time", provider)[sparsity]
        left = 0.0
        for metric, (_, colour) in PARTS.items():
            value = pretraining.values(rows, metric, provider).get(sparsity, 0.0)
            axes.barh(place, value, left=left, height=0.72, color=colour, linewidth=0)
            left += value
        if not left:
            axes.barh(place, step, height=0.72, facecolor="none", edgecolor=WHOLE[1], linewidth=0.6)
            left, whole = step, True
        if provider == pretraining.OURS and sparsity in updates:
            value = updates[sparsity] / pretraining.UPDATE_EVERY
            axes.barh(place, value, left=left, height=0.72, color=UPDATES[1], linewidth=0)
            left += value
        axes.text(left, place, f" {step:.3g}", ha="left", va="center", fontsize=5.5)
    axes.set_yticks(range(len(bars)), [label for label, _, _ in bars])
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.grid(False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(0, axes.get_xlim()[1] * 1.14)
    axes.set_xlabel("ms per step")
    return whole


def draw(table: pd.DataFrame) -> Figure:
    """Draws a panel for each model, with a bar for dense and one for each sparsity."""
    rows = pretraining.step_rows(table)
    timed = rows[rows["metric"] == "time_mlp"]
    known = [case for case in training.cases(rows) if not pretraining.of_case(timed, case).empty]
    if not known:
        return style.not_run(TITLE, training.why_empty(table))
    figure, axes = training.panels(len(known), 1.35)
    whole = False
    for place, case in zip(axes, known, strict=True):
        whole |= _panel(place, pretraining.of_case(rows, case))
        place.set_title(f"{training.case_label(case)}\n{case[2]} tokens", fontsize=6.5)
    entries = [
        style.handle(label, marker="s", color=colour, markersize=5, markeredgewidth=0)
        for label, colour in [*PARTS.values(), UPDATES]
    ]
    if whole:
        entries.append(style.handle(WHOLE[0], marker="s", color=WHOLE[1], markersize=5, markerfacecolor="none"))
    style.legend_above(figure, entries)
    style.finish(figure)
    style.footer(
        figure,
        timed,
        "Attention (with projections) and MLP: forward and backward of one layer, compiled and timed alone, times the "
        "number of layers. The number is the whole step. The rest is what remains: embeddings, norms, head, loss.",
        training.lost_points(table),
    )
    return figure
