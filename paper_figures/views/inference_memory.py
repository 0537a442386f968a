"""Memory of inference by use, computed from the sizes of the models, with measured peaks where there are any."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from blast.architectures.gpus_needed import USABLE
from blast.experiment.analysis import gpu_cost
from paper_figures.views import _memory as of_suite
from paper_figures.views import _style as style

TITLE = "Memory of inference"
CATEGORY = "Inference"
SUITES = ("memory",)
USES = {
    "dense": ("embeddings, attention", "#0072B2"),
    "mlp": ("MLP weights", "#56B4E9"),
    "index": ("block indices", "#D55E00"),
    "kv_cache": ("keys and values", "#009E73"),
    "activations": ("activations", "#E69F00"),
}
GIGABYTE = 1e9


def _panel(axes: Axes, rows: pd.DataFrame, model: str) -> float:
    """Bars of one model; gives the highest place of a mark."""
    highest, labels, place = 0.0, [], 0.0
    for serving in gpu_cost.SERVINGS:
        for sparsity in gpu_cost.SPARSITIES:
            memory = gpu_cost.computed_memory(model, sparsity, serving)
            foot = 0.0
            for use, (_, colour) in USES.items():
                value = getattr(memory, use) + (memory.row_lists if use == "index" else 0)
                axes.bar(place, value / GIGABYTE, bottom=foot, width=0.78, color=colour, linewidth=0)
                foot += value / GIGABYTE
            highest = max(highest, foot)
            peaks = [
                of_suite.measured(rows, model, sparsity, serving, gpu_cost.BLOCK, metric)
                for metric in ("prefill_peak_bytes", "decode_peak_bytes")
            ]
            peak = max((peak for peak in peaks if not math.isnan(peak)), default=math.nan) / GIGABYTE
            if not math.isnan(peak):
                axes.plot([place - 0.45, place + 0.45], [peak, peak], color=style.INK, linewidth=1.2, zorder=4)
                highest = max(highest, peak)
            # Above the mark of a measured peak too.
            top = foot if math.isnan(peak) else max(foot, peak)
            axes.annotate(f"{foot:.3g}", (place, top), xytext=(0, 1.5), textcoords="offset points", ha="center",
                          va="bottom", fontsize=5, bbox=style.BEHIND_TEXT)  # fmt: skip
            labels.append((place, f"{100 * sparsity:g}" if sparsity else "dense"))
            place += 1
        place += 0.7
    axes.set_xlim(-0.7, place + 0.6)  # room for the names of the lines
    axes.set_xticks([at for at, _ in labels], [text for _, text in labels], fontsize=5)
    axes.tick_params(axis="x", length=0)
    return highest


def draw(table: pd.DataFrame) -> Figure:
    """Draws a panel for each model: what is served once by one user and once by a batch, from dense to 95 %."""
    rows = of_suite.memory_rows(table)
    figure = style.new_figure(style.DOUBLE, 4.6)
    panels = list(figure.subplots(2, 2).flat)
    for axes, model in zip(panels, gpu_cost.MODELS, strict=True):
        top = 1.16 * _panel(axes, rows, model)
        axes.set_ylim(0, top)
        axes.set_title(style.model_label(model))
        axes.spines[["top", "right"]].set_visible(False)
        for memory in gpu_cost.MEMORIES:
            if 0.15 * top < USABLE * memory < top:
                axes.axhline(USABLE * memory, color=style.MUTED, linewidth=0.6, linestyle=":", zorder=0)
                axes.text(
                    0.998, USABLE * memory, f"{memory} GB", transform=axes.get_yaxis_transform(), fontsize=5,
                    color=style.MUTED, ha="right", va="bottom",
                )  # fmt: skip
        for number, serving in enumerate(gpu_cost.SERVINGS):
            middle = (len(gpu_cost.SPARSITIES) + 0.7) * number + (len(gpu_cost.SPARSITIES) - 1) / 2
            axes.text(
                middle, 0.99, f"batch {serving.batch} × {serving.context} tokens", ha="center", va="top", fontsize=5.5,
                transform=axes.get_xaxis_transform(), color=style.MUTED,
            )  # fmt: skip
    for axes in panels[::2]:
        axes.set_ylabel("GB")
    for axes in panels[2:]:
        axes.set_xlabel("sparsity of MLP weights (%)")
    entries = [
        style.handle(label, marker="s", color=colour, markersize=5, markeredgewidth=0)
        for label, colour in USES.values()
    ]
    entries.append(style.handle("measured peak", linestyle="-", color=style.INK))
    style.legend_above(figure, entries)
    style.finish(figure)
    shown = rows[rows["model"].isin(gpu_cost.MODELS)]
    style.footer(
        figure,
        shown,
        "Bars are computed from the sizes of the models, not measured: bfloat16, block "
        f"{gpu_cost.BLOCK}, all on one GPU, prompts in pieces of {gpu_cost.SERVINGS[0].tokens_at_once} tokens. "
        f"Dotted: {USABLE:.0%} of the memory of one GPU.",
        "" if len(shown) else "Measured peaks: not run.",
    )
    return figure
