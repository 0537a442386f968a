"""Ours beside other block-sparse kernels on the same GPU: speed-up over dense, case by case."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paper_figures.views import _kernels as kernels
from paper_figures.views import _style as style

TITLE = "Block-sparse kernels compared"
CATEGORY = "Kernels"
SUITES = ("kernels",)
MARKS = {
    "ours": ("ours", "o", "#D55E00"),
    "torch_bsr": ("torch BSR", "s", "#0072B2"),
    "stk": ("stk", "^", "#009E73"),
    "blksprs": ("blksprs", "D", "#CC79A7"),
}


def _cases(table: pd.DataFrame, found: pd.DataFrame) -> list[tuple[Any, ...]]:
    """Model, block, sparsity and tokens of each case that was timed with peers, even if a peer could not run it."""
    rows = kernels.kernel_rows(table)
    asked = rows[rows["provider"].isin(list(kernels.PEERS)) & (rows["metric"] == "latency")]
    cases = set(asked[kernels.KEY].itertuples(index=False, name=None))
    place = {model: number for number, model in enumerate(kernels.by_size(found["model"]))}
    return sorted(cases, key=lambda case: (place.get(case[0], 99), case[1], case[2], case[3]))


def draw(table: pd.DataFrame) -> Figure:
    """Draws one line for each case. The footer says why a peer is missing from a case."""
    found = kernels.speed_ups(table)
    found = found[(found["mask"] == kernels.UNIFORM) & ~found["tied"]]
    cases = _cases(table, found) if len(found) else []
    if not cases:
        return style.not_run(TITLE, kernels.why_empty(table))
    figure = style.new_figure(style.DOUBLE * 0.75, 0.16 * len(cases) + 1.1)
    axes = figure.subplots()
    shown = []
    for place, case in enumerate(cases):
        same = (found[kernels.KEY] == list(case)).all(axis=1)
        for provider, (_, marker, colour) in MARKS.items():
            rows = found[same & (found["provider"] == provider)]
            # If a case was timed twice, use the run that also timed the peers.
            rows = rows[rows["point"].isin(_timed_with_peers(found, same))] if provider == "ours" else rows
            if rows.empty:
                continue
            row = rows.iloc[0]
            shown.append(row)
            if not math.isnan(row["low"]):
                axes.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=0.8, zorder=2)
            axes.plot(row["ratio"], place, marker=marker, color=colour, markersize=4, linestyle="none", zorder=3)
    axes.axvline(1, color=style.INK, linewidth=0.7, linestyle=(0, (4, 2)))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    axes.set_yticks(
        range(len(cases)),
        [
            f"{style.model_label(model)}, {100 * sparsity:g} %, block {kernels.block_label(block)}, {tokens} tokens"
            for model, block, sparsity, tokens in cases
        ],
    )
    axes.set_ylim(len(cases) - 0.5, -0.5)
    axes.grid(axis="x", color="#ececec")
    axes.set_xlabel("speed-up over eager dense")
    present = {row["provider"] for row in shown}
    style.legend_above(
        figure, [style.handle(label, marker=m, color=c) for name, (label, m, c) in MARKS.items() if name in present]
    )
    _best_peers(axes, cases, shown)
    style.finish(figure)
    style.footer(figure, pd.DataFrame(shown), "Outputs were checked against float32 before timing.", _reasons(table))
    return figure


def _best_peers(axes: Axes, cases: list[tuple[Any, ...]], shown: list[Any]) -> None:
    """Writes beside each case the speed-up of ours over the fastest peer."""
    beside = {"transform": axes.get_yaxis_transform(), "fontsize": 6, "ha": "center", "va": "center"}
    axes.text(1.06, -1.1, "ours over\nbest peer", **beside)
    for place, case in enumerate(cases):
        ratio = {row["provider"]: row["ratio"] for row in shown if tuple(row[kernels.KEY]) == case}
        best = max((value for provider, value in ratio.items() if provider != "ours"), default=None)
        known = best is not None and "ours" in ratio
        axes.text(1.06, place, f"{ratio['ours'] / best:.2f}×" if known else "–", **beside)


def _timed_with_peers(found: pd.DataFrame, same: pd.Series) -> set[str]:
    peers = set(found[same & found["provider"].isin(list(kernels.PEERS))]["point"])
    return peers or set(found[same & (found["provider"] == "ours")]["point"])


def _reasons(table: pd.DataFrame) -> str:
    """A sentence for each reason why a peer did not run."""
    rows = kernels.kernel_rows(table)
    lost = rows[rows["provider"].isin(list(kernels.PEERS)) & (rows["status"] != "ok")]
    parts = []
    for (provider, status, cause), cases in lost.groupby(["provider", "status", "cause"], sort=True):
        parts.append(f"{kernels.PEERS[provider]} {status} in {len(cases)} cases: {cause}.")
    return " ".join(parts)
