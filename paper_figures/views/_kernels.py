"""Shared by the views of the suite `kernels`: the rows of one GPU, speed-ups, and shares of the roofline."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

from blast.experiment.analysis.comparison import missing
from blast.experiment.analysis.ratio import on_gpu, ratios
from paper_figures.views import _style as style

SUITE = "kernels"
UNIFORM = "uniform"
PEERS = {"torch_bsr": "torch BSR", "stk": "stk", "blksprs": "blksprs"}
KEY = ["model", "block", "sparsity", "tokens"]
# A point with at least so many token counts is a curve: `kernel_tokens` draws it, other figures leave it out.
CURVE = 12


def kernel_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the suite from one GPU: the one with most local rows, else with most rows.

    If the down projection has transposed blocks, `block` names both: `128x64/64x128`.
    """
    rows = table[table["suite"] == SUITE]
    on_one = pd.Series([on_gpu(row) for row in rows.itertuples(index=False)], index=rows.index, dtype=bool)
    timed = rows[(rows["status"] == "ok") & on_one]
    if timed.empty:
        return rows.iloc[:0]
    local = (timed["source"] == "local").groupby(timed["hardware"]).sum()
    ranked = pd.DataFrame({"local": local, "rows": timed.groupby("hardware").size()}).reset_index()
    best = ranked.sort_values(["local", "rows", "hardware"], ascending=[False, False, True]).iloc[0]["hardware"]
    rows = rows[rows["hardware"] == best]
    transposed = [json.loads(setting).get("down_block") == "transposed" for setting in rows["setting"]]
    blocks = [
        f"{block}/{'x'.join(reversed(block.split('x')))}" if flag else block
        for block, flag in zip(rows["block"], transposed, strict=True)
    ]
    return rows.assign(block=pd.Series(blocks, index=rows.index, dtype=object))


def gate_up_block(block: str) -> str:
    """The block of gate and up."""
    return block.partition("/")[0]


def speed_ups(table: pd.DataFrame) -> pd.DataFrame:
    """Speed-up of each provider over eager dense on one GPU, as `ratios` returns it, without the points of curves."""
    return with_masks(ratios(_without_curves(kernel_rows(table)), "latency"))


def plain(found: pd.DataFrame) -> pd.DataFrame:
    """Rows of our kernels with uniform masks. Those that skip dead hidden blocks are another provider."""
    return found[(found["provider"] == "ours") & (found["mask"] == UNIFORM)]


def fractions(table: pd.DataFrame) -> pd.DataFrame:
    """Share of the bound that ours reached; the column `bound` says which one limits. Points of curves are left out."""
    rows = _without_curves(kernel_rows(table))
    rows = rows[(rows["metric"] == "roofline_fraction") & (rows["status"] == "ok")]
    bounds = [json.loads(setting).get("bound") for setting in rows["setting"]]
    return plain(with_masks(rows.assign(bound=pd.Series(bounds, index=rows.index, dtype=object))))


def curve_points(rows: pd.DataFrame) -> list[str]:
    """The points that timed ours at `CURVE` token counts or more."""
    timed = rows[(rows["metric"] == "latency") & (rows["status"] == "ok") & (rows["provider"] == "ours")]
    counts = timed.groupby("point")["tokens"].nunique()
    return list(counts[counts >= CURVE].index)


def _without_curves(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[~rows["point"].isin(curve_points(rows))]


def with_masks(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with `tied` as a plain bool, False for a model without a gate, and with the kind of `mask`."""
    tied = pd.Series([value is True or value == 1 for value in rows["tied"]], index=rows.index, dtype=bool)
    return rows.assign(tied=tied, mask=rows["mask"].where(rows["mask"].notna(), UNIFORM))


def by_size(models: Any) -> list[str]:
    """Models by size of their MLP, largest first; unknown ones last."""
    from blast import architectures

    def weights(model: str) -> float:
        shape = architectures.get(model).shape if model in architectures.names() else None
        return -(shape.hidden * shape.ffn * (3 if shape.gated else 2)) if shape else 0.0

    return sorted(set(models), key=lambda model: (weights(model), model))


def in_order(lines: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """The lines of a table, sorted by hardware, then by model as in `by_size`, then by `columns`."""
    place = {model: number for number, model in enumerate(by_size(lines["model"].dropna()))}
    placed = lines.assign(place=lines["model"].map(place))
    order = ["hardware", "place", *columns]
    sorted_lines = placed.sort_values(order, kind="stable", na_position="last", ignore_index=True)
    return sorted_lines.drop(columns="place").astype({"tokens": "Int64"})


def by_area(blocks: Any) -> list[str]:
    """Blocks by area, largest first; of equal areas the one with more rows first."""

    def size(block: str) -> tuple[int, int]:
        rows, cols = map(int, gate_up_block(block).split("x"))
        return -rows * cols, -rows

    return sorted(set(blocks), key=size)


def block_label(block: str) -> str:
    """`64` for a square, `64 × 128`, or `64 × 128 / 128 × 64` for gate-up and down."""
    sides = [part.partition("x")[::2] for part in str(block).split("/")]
    return " / ".join(rows if rows == cols else f"{rows} × {cols}" for rows, cols in sides)


def lost_points(table: pd.DataFrame, shown: int = 4) -> str:
    """A sentence for the footer with the points of the suite that failed or were not run."""
    rows = missing(table[(table["suite"] == SUITE) & table["provider"].isna()])
    parts = []
    for status, lost in rows.groupby("status", sort=True):
        names = [
            f"{style.model_label(row.model)} {100 * row.sparsity:g} % block {block_label(row.block)}"
            for row in lost.itertuples(index=False)
        ]
        more = f" and {len(names) - shown} more" if len(names) > shown else ""
        parts.append(f"{str(status).capitalize()}: {', '.join(names[:shown])}{more}.")
    return " ".join(parts)


def why_empty(table: pd.DataFrame) -> str:
    """`failed` if every point of the suite failed, else `not run`."""
    return style.why_empty(table[table["suite"] == SUITE])
