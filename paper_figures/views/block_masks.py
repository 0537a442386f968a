"""Block masks of one matrix during pruning: which blocks are kept, grown and dropped."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from paper_figures.views import _style as style

TITLE = "Block masks over time"
CATEGORY = "Masks"
SUITES = ("train",)
MOMENTS = 6
# Inches: left margin, gap between masks, above and below a row, above and below all rows.
LEFT, GAP, HEADING, CAPTION, LEGEND, FOOT = 0.22, 0.08, 0.24, 0.2, 0.24, 0.25
EMPTY, DROPPED, GROWN, LIVE = range(4)
GROWN_COLOUR, DROPPED_COLOUR, EMPTY_COLOUR = "#E69F00", "#c9c9c9", "#f4f4f4"


def _chosen(table: pd.DataFrame) -> pd.DataFrame:
    """For each model and dataset the sparsest local BLaST run with masks, of the lowest seed."""
    masks = table.attrs.get("masks", {})
    done = table[(table["status"] == "ok") & (table["method"] == "blast") & (table["source"] == "local")]
    points = done.drop_duplicates("point")
    here = [name in masks and Path(masks[name]).is_file() for name in points["point"]]
    points = points[pd.Series(here, index=points.index, dtype=bool)]
    points = points.sort_values(
        ["model", "dataset", "sparsity", "seed", "point"], ascending=[True, True, False, True, True]
    )
    return points.drop_duplicates(["model", "dataset"])


def _masks(file: Path) -> tuple[str, dict[int, np.ndarray]]:
    """Name and masks by step (`[out, in]` in blocks) of the first matrix of the middle layer."""
    from safetensors.numpy import load_file

    by_name: dict[str, dict[int, np.ndarray]] = {}
    for key, mask in load_file(file).items():
        step, name = key.split("/", 1)
        by_name.setdefault(name, {})[int(step.removeprefix("step"))] = mask.astype(bool)
    names = sorted(
        by_name, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
    )
    name = names[len(names) // 2]
    siblings = [other for other in names if re.findall(r"\d+", other)[:1] == re.findall(r"\d+", name)[:1]]
    return siblings[0], dict(sorted(by_name[siblings[0]].items()))


def _evenly_spaced(steps: list[int]) -> list[int]:
    """At most `MOMENTS` evenly spaced steps, with the first and the last."""
    if len(steps) <= MOMENTS:
        return steps
    places = np.linspace(0, len(steps) - 1, MOMENTS).round().astype(int)
    return [steps[place] for place in places]


def states(masks: dict[int, np.ndarray], steps: list[int]) -> dict[int, np.ndarray]:
    """State of each block at each step, relative to the step before: LIVE, GROWN, DROPPED or EMPTY."""
    found, before = {}, None
    for step in steps:
        now = masks[step]
        state = np.where(now, LIVE, EMPTY)
        if before is not None:
            state[now & ~before] = GROWN
            state[~now & before] = DROPPED
        found[step], before = state, now
    return found


def _size(shape: tuple[int, int], cell: float) -> tuple[float, float]:
    """Width and height in inches of a mask whose longer side is horizontal."""
    return cell, max(0.12, cell * min(shape) / max(shape))


def draw(table: pd.DataFrame) -> Figure:
    """Draws a row of masks for each model and dataset. Tall matrices are transposed to `[in, out]`."""
    chosen = _chosen(table)
    if chosen.empty:
        return style.not_run(TITLE, style.why_empty(table))
    rows = []
    for point in chosen.itertuples(index=False):
        name, masks = _masks(Path(table.attrs["masks"][point.point]))
        steps = _evenly_spaced(list(masks))
        transposed = masks[steps[0]].shape[0] > masks[steps[0]].shape[1]
        rows.append((point, name, masks, states(masks, steps), transposed))
    columns = max(len(changes) for *_, changes, _ in rows)
    cell = (style.DOUBLE - LEFT - GAP * columns) / columns
    sizes = [_size(next(iter(masks.values())).shape, cell) for _, _, masks, _, _ in rows]
    height = LEGEND + FOOT + sum(tall + HEADING + CAPTION for _, tall in sizes)
    figure = style.new_figure(style.DOUBLE, height, layout=None)
    top = height - LEGEND
    for (point, name, masks, changes, transposed), (wide, tall) in zip(rows, sizes, strict=True):
        out_blocks, in_blocks = next(iter(masks.values())).shape
        heading = (
            f"{style.model_label(point.model)} · {style.dataset_label(point.dataset)} · {100 * point.sparsity:g} %"
        )
        detail = f"{name}, {out_blocks} × {in_blocks} blocks of {point.block.replace('x', ' × ')} (out × in)"
        at = (LEFT / style.DOUBLE, (top - 0.6 * HEADING) / height)
        figure.text(*at, heading, fontsize=7.5, fontweight="bold")
        figure.text(1 - GAP / style.DOUBLE, at[1], detail, fontsize=6, color=style.MUTED, ha="right")
        top -= HEADING + tall
        colours = ListedColormap([EMPTY_COLOUR, DROPPED_COLOUR, GROWN_COLOUR, to_rgb(style.model_colour(point.model))])
        for place, (step, state) in enumerate(changes.items()):
            left = LEFT + place * (cell + GAP)
            axes = figure.add_axes((left / style.DOUBLE, top / height, wide / style.DOUBLE, tall / height))
            axes.imshow(
                state.T if transposed else state, cmap=colours, vmin=0, vmax=3, interpolation="nearest", aspect="auto"
            )
            axes.set(xticks=[], yticks=[])
            axes.grid(False)
            for spine in axes.spines.values():
                spine.set_color(style.FAINT)
            axes.set_xlabel(f"step {step}, {100 * (1 - masks[step].mean()):.0f} % empty", labelpad=2, fontsize=6)
            if place == 0:
                axes.set_ylabel("in" if transposed else "out", fontsize=6, labelpad=2)
        top -= CAPTION
    entries = [
        Patch(color=style.MUTED, label="live (colour of the model)"),
        Patch(color=GROWN_COLOUR, label="grown since the previous step shown"),
        Patch(color=DROPPED_COLOUR, label="dropped since the previous step shown"),
        Patch(facecolor=EMPTY_COLOUR, edgecolor=style.FAINT, label="empty"),
    ]
    figure.legend(handles=entries, loc="upper left", ncols=4, borderaxespad=0.1, handlelength=1, handleheight=1)
    style.footer(figure, chosen, "One matrix of the middle layer, from the sparsest run of each model and dataset.")
    return figure
