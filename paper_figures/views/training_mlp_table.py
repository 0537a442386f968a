"""Forward and backward of one MLP: ours, compiled dense and stk, and the share of live hidden blocks."""

from __future__ import annotations

import json
import math
from typing import Any

import pandas as pd

from blast.experiment.analysis.ratio import on_gpu
from paper_figures.views import _kernels as kernels
from paper_figures.views import _style as style

TITLE = "Training of one MLP"
CATEGORY = "Training"
SUITES = ("training_mlp",)
SUITE = "training_mlp"
COLUMNS = (
    "hardware", "model", "block", "sparsity", "tokens", "tied", "mask", "live_hidden", "ours_ms", "eager_ms",
    "compiled_ms", "stk_ms", "speed_up", "over_stk", "status", "note",
)  # fmt: skip
KEY = ("hardware", "model", "block", "sparsity", "tokens", "tied", "mask")
SHOWN_KEY = ("model", "block", "sparsity", "tokens", "masks")
OTHERS = {"dense_eager": "eager_ms", "dense_compiled": "compiled_ms", "stk": "stk_ms"}


def rows(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each timing of ours, beside the others of the same run. Cases that were not run give the reason."""
    found = table[table["suite"] == SUITE]
    # Rows of points that failed or were not run have no provider and no machine: keep them.
    kept = [pd.isna(row.provider) or on_gpu(row) for row in found.itertuples(index=False)]
    found = found[pd.Series(kept, index=found.index, dtype=bool)]
    beside = {
        (row.hardware, row.point, row.tokens, row.provider): row.value
        for row in found[found["status"] == "ok"].itertuples(index=False)
        if row.provider in OTHERS
    }
    lines = [_line(row, beside) for row in found.itertuples(index=False) if row.provider == "ours"]
    lines += [
        {"hardware": row.hardware, "model": row.model, "block": row.block, "sparsity": row.sparsity,
         "status": row.status, "note": row.cause or ""}
        for row in found[found["provider"].isna()].itertuples(index=False)
    ]  # fmt: skip
    if not lines:
        lines = [{"status": "not run", "note": "no GPU has run this suite yet"}]
    return kernels.in_order(pd.DataFrame(lines, columns=list(COLUMNS)), ["block", "sparsity", "tokens", "mask", "tied"])


def _line(row: Any, beside: dict[tuple, float]) -> dict[str, Any]:
    ours = row.value if row.status == "ok" else math.nan
    line = {name: getattr(row, name) for name in ("hardware", "model", "block", "sparsity", "tokens", "tied", "mask")}
    line |= {
        column: beside.get((row.hardware, row.point, row.tokens, name), math.nan) for name, column in OTHERS.items()
    }
    dense = line["eager_ms"] if math.isnan(line["compiled_ms"]) else line["compiled_ms"]
    return line | {
        "live_hidden": json.loads(row.setting).get("live_hidden", math.nan), "ours_ms": ours,
        "speed_up": dense / ours, "over_stk": line["stk_ms"] / ours, "status": row.status, "note": row.cause or "",
    }  # fmt: skip


def printed(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows as they are printed."""

    def number(value: Any, digits: str, unit: str = "") -> str:
        return "–" if pd.isna(value) else f"{value:{digits}}{unit}"

    lines = []
    for row in frame.itertuples(index=False):
        masks = "" if pd.isna(row.mask) else str(row.mask).replace("_", " ")
        lines.append({
            "model": style.model_label(row.model) if isinstance(row.model, str) else "–",
            "block": kernels.block_label(row.block) if isinstance(row.block, str) else "",
            "sparsity": number(100 * row.sparsity, "g", " %"),
            "tokens": "" if pd.isna(row.tokens) else row.tokens,
            "masks": masks + (", shared" if row.tied is True else ""),
            "live hidden": number(100 * row.live_hidden, ".0f", " %"),
            "ours (ms)": number(row.ours_ms, ".3f"),
            "compiled dense (ms)": number(row.compiled_ms, ".3f"),
            "stk (ms)": number(row.stk_ms, ".3f"),
            "speed-up": number(row.speed_up, ".2f", "×"),
            "over stk": number(row.over_stk, ".2f", "×"),
            "note": row.note if row.status == "ok" else f"{row.status}: {row.note}".removesuffix(": "),
        })  # fmt: skip
    return pd.DataFrame(lines)
