"""Memory of a training step by use, for dense, masked-dense and sparse."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from blast.experiment.analysis import pretraining
from paper_figures.views import _style as style
from paper_figures.views import _training as training

TITLE = "Memory of a training step"
CATEGORY = "Training"
SUITES = ("training_step",)
USES = {
    "parameter_bytes": ("parameters", "#0072B2"),
    "gradient_bytes": ("gradients", "#56B4E9"),
    "optimizer_bytes": ("optimizer state", "#009E73"),
    "activation_bytes": ("activations", "#E69F00"),
}
GIGABYTE = 1e9


def _bars(rows: pd.DataFrame) -> list[tuple[str, str, float]]:
    """Label, provider and sparsity of each bar: dense and masked-dense from the sparsest point, ours from all."""
    sparsities = sorted(pretraining.values(rows, "peak_bytes", pretraining.OURS))
    bars = []
    for provider, label in ((pretraining.DENSE, "dense"), (pretraining.MASKED, "masked")):
        known = pretraining.values(rows, "peak_bytes", provider)
        if known:
            bars.append((label, provider, max(known)))
    return bars + [(f"{100 * sparsity:g} %", pretraining.OURS, sparsity) for sparsity in sparsities]


def _panel(axes: Axes, rows: pd.DataFrame) -> None:
    bars = _bars(rows)
    for place, (_, provider, sparsity) in enumerate(bars):
        foot = 0.0
        for metric, (_, colour) in USES.items():
            value = pretraining.values(rows, metric, provider).get(sparsity, 0.0) / GIGABYTE
            axes.bar(place, value, bottom=foot, width=0.72, color=colour, linewidth=0)
            foot += value
        peak = pretraining.values(rows, "peak_bytes", provider)[sparsity] / GIGABYTE
        axes.plot([place - 0.4, place + 0.4], [peak, peak], color=style.INK, linewidth=1.1, zorder=4)
        axes.text(place, max(peak, foot), f"{peak:.3g}", ha="center", va="bottom", fontsize=5.5)
    axes.set_xticks(range(len(bars)), [label for label, _, _ in bars], fontsize=5)
    axes.tick_params(axis="x", length=0)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.08)


def draw(table: pd.DataFrame) -> Figure:
    """Draws a panel for each model: memory by use as stacked bars, the peak as a line."""
    rows = pretraining.step_rows(table)
    found = rows[rows["metric"].isin([*USES, "peak_bytes"])]
    known = [case for case in training.cases(rows) if not pretraining.of_case(found, case).empty]
    if not known:
        return style.not_run(TITLE, training.why_empty(table))
    figure, axes = training.panels(len(known), 1.8)
    for place, case in zip(axes, known, strict=True):
        _panel(place, pretraining.of_case(found, case))
        place.set_title(f"{training.case_label(case)}\n{case[2]} tokens", fontsize=6.5)
    for place in axes[::4]:
        place.set_ylabel("GB")
    entries = [
        style.handle(label, marker="s", color=colour, markersize=5, markeredgewidth=0)
        for label, colour in USES.values()
    ]
    style.legend_above(figure, [*entries, style.handle("peak of the step", linestyle="-", color=style.INK)])
    style.finish(figure)
    style.footer(
        figure,
        found,
        "Float32 weights, gradients and moments, bf16 autocast. Activations are saved for the backward pass and freed "
        "before all gradients exist, so the peak may lie below the sum.",
        training.lost_points(table),
    )
    return figure
