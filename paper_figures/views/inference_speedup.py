"""How many times faster ours generates than compiled dense: the first token, and each token after it."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paper_figures.views import _decoding as decoding
from paper_figures.views import _style as style
from paper_figures.views._kernels import block_label

TITLE = "Speed-up of inference"
CATEGORY = "Inference"
SUITES = ("inference",)
# The paper: Llama-3.2-1B on one GPU.
PAPER = 1.6
METRICS = {"first_token_latency": "first token", "latency": "each token"}
MARKERS = ("o", "s", "^", "D", "v")


def _panel(axes: Axes, ratios: pd.DataFrame, markers: dict[int, str], colour: str) -> None:
    for (tokens, prompt), line in ratios.groupby(["tokens", "prompt"], sort=True):
        line = line.groupby("sparsity")["ratio"].mean()
        places = [style.sparsity_place(sparsity) for sparsity in line.index]
        axes.plot(
            places, line.to_list(), color=colour, marker=markers[tokens], markerfacecolor="white", markersize=3.5,
            linestyle="-" if prompt == ratios["prompt"].min() else (0, (4, 2)),
        )  # fmt: skip
    axes.axhline(1, color=style.INK, linewidth=0.7)
    axes.axhline(PAPER, color=style.MUTED, linewidth=0.7, linestyle=(0, (1, 1.5)))
    style.sparsity_axis(axes, ratios["sparsity"])


def draw(table: pd.DataFrame) -> Figure:
    """Draws for each model a panel for the first token and one for the tokens after it."""
    rows = decoding.timed(table)
    known = {metric: decoding.speed_ups(rows, metric) for metric in METRICS}
    models = decoding.cases(known["latency"])
    if not models:
        return style.not_run(TITLE, decoding.why_empty(table))
    figure = style.new_figure(style.DOUBLE, 1.9 * len(models) + 0.6)
    grid = figure.subplots(len(models), 2, squeeze=False)
    counts = sorted({int(count) for found in known.values() for count in found["tokens"]})
    markers = {count: MARKERS[place % len(MARKERS)] for place, count in enumerate(counts)}
    for line, (model, block) in zip(grid, models, strict=True):
        for axes, (metric, label) in zip(line, METRICS.items(), strict=True):
            found = known[metric]
            found = found[(found["model"] == model) & (found["block"] == block)]
            axes.set_title(f"{style.model_label(model)}, block {block_label(block)}: {label}")
            if found.empty:
                style.empty_panel(axes)
            else:
                _panel(axes, found, markers, style.model_colour(model))
        line[0].set_ylabel("times faster than dense")
    prompts = sorted(set(known["latency"]["prompt"]))
    entries = [
        style.handle(f"{count} sequence{'s' if count > 1 else ''}", marker=markers[count], markerfacecolor="white")
        for count in counts
    ]
    entries += [
        style.handle(f"prompt of {prompt} tokens", linestyle="-" if prompt == prompts[0] else (0, (4, 2)))
        for prompt in prompts
    ]
    entries.append(style.handle("the paper's 1.6×", linestyle=(0, (1, 1.5)), linewidth=0.7))
    style.legend_above(figure, entries)
    style.finish(figure)
    style.footer(
        figure,
        rows[rows["metric"] == "latency"],
        "Dense and ours are compiled and replayed as CUDA graphs, in the same loop and run, with random weights.",
    )
    return figure
