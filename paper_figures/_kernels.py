"""What the views of the suite `kernels` share: one GPU's rows, as speed-ups and as shares of a roofline."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

from blast.experiment.analysis.comparison import missing
from blast.experiment.analysis.ratio import on_gpu, ratios
from paper_figures import _style as style

SUITE = "kernels"
UNIFORM = "uniform"
PEERS = {"torch_bsr": "torch BSR", "stk": "stk", "blksprs": "blksprs"}
KEY = ["model", "block", "sparsity", "tokens"]


def kernel_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the suite measured on the GPU that has most of them, local ones first; never two machines.

    Where the blocks of the down projection are transposed, `block` gives both: `128x64/64x128`.
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


def front(block: str) -> str:
    """The block of the front."""
    return block.partition("/")[0]


def speed_ups(table: pd.DataFrame) -> pd.DataFrame:
    """Speed-up over eager dense of every provider on one GPU, as `ratios` gives it; empty if nothing was measured."""
    return _tie(ratios(kernel_rows(table), "latency"))


def plain(found: pd.DataFrame) -> pd.DataFrame:
    """Rows of ours itself: uniform masks, dead hidden blocks computed like all others."""
    return found[(found["provider"] == "ours") & (found["mask"] == UNIFORM)]


def fractions(table: pd.DataFrame) -> pd.DataFrame:
    """Share of the binding bound that ours reached, with the name of that bound in `bound`."""
    rows = kernel_rows(table)
    rows = rows[(rows["metric"] == "roofline_fraction") & (rows["status"] == "ok")]
    bounds = [json.loads(setting).get("bound") for setting in rows["setting"]]
    return plain(_tie(rows.assign(bound=pd.Series(bounds, index=rows.index, dtype=object))))


def _tie(rows: pd.DataFrame) -> pd.DataFrame:
    # A model without a gate has nothing to tie.
    tied = pd.Series([value is True or value == 1 for value in rows["tied"]], index=rows.index, dtype=bool)
    return rows.assign(tied=tied, mask=rows["mask"].where(rows["mask"].notna(), UNIFORM))


def by_size(models: Any) -> list[str]:
    """Models from the one with the largest MLP to the smallest; unknown ones last."""
    from blast import architectures

    def weights(model: str) -> float:
        shape = architectures.get(model).shape if model in architectures.names() else None
        return -(shape.hidden * shape.ffn * (3 if shape.gated else 2)) if shape else 0.0

    return sorted(set(models), key=lambda model: (weights(model), model))


def in_order(lines: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """The lines of a table by hardware, then by model as `by_size` has them, then by some columns."""
    place = {model: number for number, model in enumerate(by_size(lines["model"].dropna()))}
    placed = lines.assign(place=lines["model"].map(place))
    order = ["hardware", "place", *columns]
    sorted_lines = placed.sort_values(order, kind="stable", na_position="last", ignore_index=True)
    return sorted_lines.drop(columns="place").astype({"tokens": "Int64"})


def by_area(blocks: Any) -> list[str]:
    """Blocks from the largest to the smallest, squares before rectangles of the same area."""

    def size(block: str) -> tuple[int, int]:
        rows, cols = map(int, front(block).split("x"))
        return -rows * cols, -rows

    return sorted(set(blocks), key=size)


def block_label(block: str) -> str:
    """`64` for a square, `64 × 128`, or `64 × 128 / 128 × 64` for those of the front and of the down projection."""
    sides = [part.partition("x")[::2] for part in str(block).split("/")]
    return " / ".join(rows if rows == cols else f"{rows} × {cols}" for rows, cols in sides)


def lost_points(table: pd.DataFrame, shown: int = 4) -> str:
    """Names the points of the suite that failed or were not run, for the footer."""
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
