"""Step times of pretraining, and the speed-up of a whole run that follows from them."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from blast.experiment.analysis import pretraining
from paper_figures.views import _kernels as kernels
from paper_figures.views import _style as style
from paper_figures.views import _training as training

TITLE = "Pretraining"
CATEGORY = "Training"
SUITES = ("training_step",)
COLUMNS = (
    "hardware", "model", "block", "tokens", "sparsity", "dense_ms", "masked_ms", "sparse_ms", "step_speed_up",
    "union_speed_up", "swap_speed_up", "union_masked_share", "swap_masked_share", "union_update_share",
    "swap_update_share", "union_passes_at", "swap_passes_at", "status",
)  # fmt: skip
KEY = ("hardware", "model", "block", "tokens", "sparsity")
SHOWN_KEY = ("model", "block", "tokens", "sparsity")


def rows(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each model and measured sparsity; `…_passes_at`: the final sparsity that reaches the paper's 1.11x."""
    found, lines = pretraining.step_rows(table), []
    for case in training.cases(found):
        own = pretraining.of_case(found, case)
        times = pretraining.step_times(own)
        if times is None:
            continue
        ways = pretraining.GROWTH if times.spanned else ()
        passed = {growth: pretraining.passed_at(times, growth) for growth in ways}
        for sparsity, sparse in times.sparse.items():
            line = dict(zip(("model", "block", "tokens"), case, strict=True))
            line |= {"hardware": own["hardware"].iloc[0], "sparsity": sparsity, "dense_ms": times.dense}
            line |= {"masked_ms": times.masked, "sparse_ms": sparse, "step_speed_up": times.dense / sparse}
            line["status"] = "ok"
            for growth in ways:
                run = pretraining.whole_run(times, sparsity, growth)
                line[f"{growth}_speed_up"], line[f"{growth}_masked_share"] = run.speed_up, run.masked_share
                line[f"{growth}_update_share"] = run.update_share
                line[f"{growth}_passes_at"] = math.nan if passed[growth] is None else passed[growth]
            lines.append(line)
    if not lines:
        lines = [{"status": training.why_empty(table)}]
    return pd.DataFrame(lines, columns=list(COLUMNS)).astype({"tokens": "Int64"})


def printed(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows as they are printed."""

    def number(value: Any, digits: str, unit: str = "", factor: float = 1) -> str:
        return "–" if pd.isna(value) else f"{factor * value:{digits}}{unit}"

    lines = []
    for row in frame.itertuples(index=False):
        lines.append({
            "model": style.model_label(row.model) if isinstance(row.model, str) else "–",
            "block": kernels.block_label(row.block) if isinstance(row.block, str) else "",
            "tokens": number(row.tokens, "d"),
            "sparsity": number(row.sparsity, "g", " %", 100),
            "dense (ms)": number(row.dense_ms, ".1f"),
            "masked (ms)": number(row.masked_ms, ".1f"),
            "sparse (ms)": number(row.sparse_ms, ".1f"),
            "step": number(row.step_speed_up, ".2f", "×"),
            "run, union": number(row.union_speed_up, ".2f", "×"),
            "run, swap": number(row.swap_speed_up, ".2f", "×"),
            "mask updates, swap": number(row.swap_update_share, "+.1f", " %", 100),
            "1.11× from, union": number(row.union_passes_at, "g", " %", 100),
            "1.11× from, swap": number(row.swap_passes_at, "g", " %", 100),
            "status": row.status,
        })  # fmt: skip
    return pd.DataFrame(lines)
