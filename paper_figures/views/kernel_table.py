"""All kernel benchmarks: microseconds, speed-up over dense, and share of the roofline bound."""

from __future__ import annotations

import json
import math
from typing import Any

import pandas as pd

from blast.experiment.analysis.recipe import variant_of
from paper_figures.views import _kernels as kernels
from paper_figures.views import _style as style

TITLE = "Kernel benchmarks"
CATEGORY = "Kernels"
SUITES = ("kernels",)
COLUMNS = (
    "grid", "hardware", "model", "block", "sparsity", "tokens", "tied", "mask", "dtype", "provider", "variant", "seed",
    "dense_us", "compiled_us", "us", "us_q20", "us_q80", "speed_up", "bound", "bound_us", "bound_fraction",
    "dead_hidden", "quantization_error", "status", "note",
)  # fmt: skip
# `variant` is that of the point: peers are timed beside ours, in points of their own.
KEY = (
    "grid", "hardware", "model", "block", "sparsity", "tokens", "tied", "mask", "dtype", "provider", "variant", "seed"
)  # fmt: skip
SHOWN_KEY = ("model", "block", "sparsity", "tokens", "kernel", "masks")
DENSE = ("dense_eager", "dense_compiled")


def rows(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each timing except dense, beside dense of the same run. Cases that were not run give the reason."""
    found = kernels.kernel_rows(table)
    latency = found[found["metric"] == "latency"]
    dense = {
        (row.point, row.tokens, row.provider): row.value
        for row in latency.itertuples(index=False)
        if row.provider in DENSE
    }
    bounds = {
        _key(row): (row.value, json.loads(row.setting))
        for row in found[found["metric"] == "roofline_fraction"].itertuples(index=False)
    }
    lines = [
        _line(row, dense, bounds.get(_key(row)))
        for row in latency.itertuples(index=False)
        if row.provider not in DENSE or row.status != "ok"
    ]
    unmeasured = table[(table["suite"] == kernels.SUITE) & table["provider"].isna() & (table["status"] != "ok")]
    lines += [
        {"grid": row.grid, "hardware": row.hardware, "model": row.model, "block": row.block,
         "sparsity": row.sparsity, "variant": variant_of(row.point), "seed": row.seed, "status": row.status,
         "note": row.cause or ""}
        for row in unmeasured.itertuples(index=False)
    ]  # fmt: skip
    if not lines:
        lines = [{"status": "not run", "note": "no GPU has run this suite yet"}]
    return kernels.in_order(
        pd.DataFrame(lines, columns=list(COLUMNS)),
        ["block", "sparsity", "tokens", "tied", "mask", "provider", "variant"],
    )


def _key(row: Any) -> tuple:
    values = (row.point, row.provider, row.tokens, row.tied, row.mask)
    return tuple(None if pd.isna(value) else value for value in values)


def _line(row: Any, dense: dict, bound: tuple[float, dict] | None) -> dict[str, Any]:
    eager, compiled = (dense.get((row.point, row.tokens, name), math.nan) for name in DENSE)
    setting = json.loads(row.setting)
    remarks = [f"masks of {setting['masks_of']}"] if "masks_of" in setting else []
    remarks += [] if setting.get("tuned", True) else ["its tuner was stopped early"]
    value = math.nan if row.status != "ok" else row.value
    line = {
        "grid": row.grid, "hardware": row.hardware, "model": row.model, "block": row.block,
        "sparsity": row.sparsity, "variant": variant_of(row.point), "seed": row.seed, "tokens": row.tokens,
        "tied": row.tied, "mask": row.mask, "dtype": row.dtype, "provider": row.provider,
        "dense_us": 1e3 * eager, "compiled_us": 1e3 * compiled, "us": 1e3 * value, "us_q20": 1e3 * row.low,
        "us_q80": 1e3 * row.high, "speed_up": eager / value, "dead_hidden": setting.get("dead_hidden", math.nan),
        "quantization_error": setting.get("quantization_error", math.nan), "status": row.status,
        "note": row.cause or "; ".join(remarks),
    }  # fmt: skip
    if bound is not None:
        share, facts = bound
        line |= {"bound": facts["bound"], "bound_us": 1e3 * facts["bound_ms"], "bound_fraction": share}
    return line


def printed(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows as they are printed."""

    def number(value: Any, digits: str, unit: str = "") -> str:
        return "–" if pd.isna(value) else f"{value:{digits}}{unit}"

    lines = []
    for row in frame.itertuples(index=False):
        known = isinstance(row.provider, str)
        lines.append({
            "model": style.model_label(row.model) if isinstance(row.model, str) else "–",
            "block": kernels.block_label(row.block) if isinstance(row.block, str) else "",
            "sparsity": number(100 * row.sparsity, "g", " %"),
            "tokens": "" if pd.isna(row.tokens) else row.tokens,
            "kernel": row.provider.replace("_", " ") + (", shared masks" if row.tied is True else "") if known else "",
            "masks": row.mask or "",
            "dense (µs)": number(row.dense_us, ".1f"),
            "compiled (µs)": number(row.compiled_us, ".1f"),
            "time (µs)": number(row.us, ".1f"),
            "speed-up": number(row.speed_up, ".2f", "×"),
            "bound": f"{row.bound}, {100 * row.bound_fraction:.0f} %" if isinstance(row.bound, str) else "",
            "weights off": "" if pd.isna(row.quantization_error) else f"{100 * row.quantization_error:.1f} %",
            "dead": "" if pd.isna(row.dead_hidden) else f"{100 * row.dead_hidden:.0f} %",
            "note": row.note if row.status == "ok" else f"{row.status}: {row.note}".removesuffix(": "),
        })  # fmt: skip
    return pd.DataFrame(lines)
