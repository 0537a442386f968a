"""Shared by the views of inference memory: the measured rows that belong to what is served."""

from __future__ import annotations

import math

import pandas as pd

from blast.architectures.gpus_needed import Serving
from blast.experiment.analysis.ratio import on_gpu

SUITE = "memory"


def memory_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the suite `memory` that were measured on a GPU."""
    rows = table[(table["suite"] == SUITE) & (table["status"] == "ok")]
    return rows[[on_gpu(row) for row in rows.itertuples(index=False)]] if len(rows) else rows


def measured(rows: pd.DataFrame, model: str, sparsity: float, serving: Serving, block: int, metric: str) -> float:
    """The largest measured value; NaN if there is none. Dense is that of any point of the model."""
    keep = (rows["model"] == model) & (rows["metric"] == metric) & (rows["dtype"] == "bfloat16")
    keep &= (rows["batch"] == serving.batch) & (rows["tokens"] == serving.context)
    if sparsity:
        keep &= (rows["provider"] == "ours") & (rows["block"].isin([str(block), f"{block}x{block}"]))
        keep &= (rows["sparsity"] - sparsity).abs() < 1e-9
    else:
        keep &= rows["provider"] == "dense_eager"
    found = rows[keep.fillna(False).astype(bool)]["value"]
    return float(found.max()) if len(found) else math.nan
