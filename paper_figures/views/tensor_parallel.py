"""One decoder layer over several GPUs, dense and ours: time, bytes and joules of a step; what is projected says so."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd

from blast.experiment.analysis.ratio import on_gpu
from paper_figures.views import _kernels as kernels
from paper_figures.views import _style as style

TITLE = "Layers over several GPUs"
CATEGORY = "Inference"
SUITES = ("tensor_parallel",)
SUITE = "tensor_parallel"
DENSE, OURS = "dense_eager", "ours"
COLUMNS = (
    "hardware", "model", "block", "sparsity", "tied", "sequences", "gpus", "of", "dense_ms", "ours_ms", "speed_up",
    "dense_bytes", "ours_bytes", "dense_joules", "ours_joules", "all_reduce_ms", "known", "note",
)  # fmt: skip
KEY = ("hardware", "model", "block", "sparsity", "tied", "sequences", "gpus", "of")
SHOWN_KEY = ("model", "block", "sparsity", "GPUs", "sequences", "of")
# What is timed, by metric, and what it is of.
TIMES = {"layer_latency": "layer", "latency": "model"}


def rows(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each number of GPUs and sequences of a point; bytes and joules are those of all GPUs for a token."""
    found = table[(table["suite"] == SUITE) & table["provider"].notna()]
    found = found[[on_gpu(row) for row in found.itertuples(index=False)]] if len(found) else found
    lines = [line for point in dict.fromkeys(found["point"]) for line in _lines(found[found["point"] == point])]
    unmeasured = table[(table["suite"] == SUITE) & table["provider"].isna() & (table["status"] != "ok")]
    lines += [
        {"hardware": row.hardware, "model": row.model, "block": row.block, "sparsity": row.sparsity,
         "known": row.status, "note": row.cause or ""}
        for row in unmeasured.itertuples(index=False)
    ]  # fmt: skip
    if not lines:
        lines = [{"known": "not run", "note": "no machine with several GPUs has run this suite yet"}]
    frame = pd.DataFrame(lines, columns=list(COLUMNS))
    return frame.astype({"sequences": "Int64", "gpus": "Int64"})


def _lines(point: pd.DataFrame) -> Iterator[dict[str, Any]]:
    values = {
        (row.metric, row.provider, int(row.gpus), None if pd.isna(row.tokens) else int(row.tokens)): row
        for row in point.itertuples(index=False)
    }
    for metric, of in TIMES.items():
        places = [key[2:] for key in values if key[:2] == (metric, OURS)]
        for gpus, tokens in places:
            ours, dense = (values.get((metric, name, gpus, tokens)) for name in (OURS, DENSE))
            projected = ours.projected is True
            measured = ours.status == "ok" and dense is not None and dense.status == "ok"
            yield {
                "hardware": ours.hardware, "model": ours.model, "block": ours.block, "sparsity": ours.sparsity,
                "tied": ours.tied, "sequences": tokens, "gpus": gpus, "of": of,
                "dense_ms": dense.value if measured else math.nan, "ours_ms": ours.value if measured else math.nan,
                "speed_up": dense.value / ours.value if measured else math.nan,
                "known": ("projected" if projected else "measured") if measured else ours.status,
                "note": ours.cause or "",
                "all_reduce_ms": _reduced(values, gpus, tokens),
            } | (_of_token(values, gpus, tokens) if of == "layer" else {})  # fmt: skip


def _of_token(values: dict[tuple, Any], gpus: int, tokens: int | None) -> dict[str, float]:
    """Bytes and joules of a token, dense and ours; NaN where they were not measured."""
    found = {}
    for name, provider in (("dense", DENSE), ("ours", OURS)):
        for column, metric in (("bytes", "read_bytes"), ("joules", "energy")):
            row = values.get((metric, provider, gpus, tokens))
            found[f"{name}_{column}"] = math.nan if row is None or row.status != "ok" else row.value
    return found


def _reduced(values: dict[tuple, Any], gpus: int, tokens: int | None) -> float:
    return next(
        (row.value for key, row in values.items() if key[0] == "all_reduce_latency" and key[2:] == (gpus, tokens)),
        math.nan,
    )


def printed(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows as they are printed."""

    def number(value: Any, digits: str, unit: str = "", scale: float = 1.0) -> str:
        return "–" if pd.isna(value) else f"{scale * value:{digits}}{unit}"

    lines = []
    for row in frame.itertuples(index=False):
        note = row.note if isinstance(row.note, str) else ""
        lines.append({
            "model": style.model_label(row.model) if isinstance(row.model, str) else "–",
            "block": kernels.block_label(row.block) if isinstance(row.block, str) else "",
            "sparsity": number(row.sparsity, "g", " %", 100) + (", shared masks" if row.tied is True else ""),
            "GPUs": "" if pd.isna(row.gpus) else row.gpus,
            "sequences": "" if pd.isna(row.sequences) else row.sequences,
            "of": row.of if isinstance(row.of, str) else "",
            "dense (µs)": number(row.dense_ms, ".1f", scale=1e3),
            "ours (µs)": number(row.ours_ms, ".1f", scale=1e3),
            "speed-up": number(row.speed_up, ".2f", "×"),
            "dense (MB a token)": number(row.dense_bytes, ".1f", scale=1e-6),
            "ours (MB a token)": number(row.ours_bytes, ".1f", scale=1e-6),
            "dense (mJ a token)": number(row.dense_joules, ".1f", scale=1e3),
            "ours (mJ a token)": number(row.ours_joules, ".1f", scale=1e3),
            "all-reduce (µs)": number(row.all_reduce_ms, ".1f", scale=1e3),
            "known": f"{row.known}: {note}" if note else row.known,
        })  # fmt: skip
    return pd.DataFrame(lines)


def remarks(frame: pd.DataFrame) -> list[str]:
    """How the numbers came about."""
    return [
        "One decoder layer in decoding, with random weights and masks: attention over a full cache and the MLP, each "
        "with an all-reduce. All GPUs replay a CUDA graph at one time, and the slowest counts. Dense is not compiled.",
        "Projected: the part of one of so many GPUs was measured, and the all-reduces follow from those of fewer GPUs, "
        "as if all were linked alike. The model is as many layers and the head; nothing of it was run as a whole.",
    ]
