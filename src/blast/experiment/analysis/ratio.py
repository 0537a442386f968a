"""Speed-ups and savings over dense. Derived from rows when needed, never stored."""

from __future__ import annotations

from typing import Any

import pandas as pd

DENSE_PROVIDERS = ("dense_eager", "dense_compiled")
# Two measurements are comparable if they agree in these columns.
PLACE = ("grid", "hardware", "suite", "model", "dataset", "metric", "tokens", "batch", "dtype", "seed")
COLUMNS = (
    "grid", "hardware", "suite", "model", "dataset", "metric", "method", "provider", "baseline", "sparsity", "block",
    "tokens", "batch", "dtype", "seed", "gpu", "gpus", "projected", "point", "source", "tied", "mask", "ratio", "low",
    "high",
)  # fmt: skip


def on_gpu(row: Any) -> bool:
    """Whether a row was measured on a GPU. Triton's interpreter runs on the CPU, even on a GPU machine."""
    interpreted = row.interpreter is True
    return not interpreted and bool(row.hardware) and not str(row.hardware).startswith("cpu")


def _key(row: Any, extra: tuple[str, ...] = ()) -> tuple:
    values = [getattr(row, name) for name in (*PLACE, *extra)]
    # `pd.isna` of one value takes longer than all else here.
    return tuple(None if value is pd.NA or value != value else value for value in values)


def _interval(dense: Any, ours: Any) -> tuple[float, float]:
    """Smallest and largest ratio of the two intervals; NaN if one of them has no interval."""
    if pd.isna(dense.low) or pd.isna(ours.high) or not ours.high or not ours.low:
        return float("nan"), float("nan")
    return dense.low / ours.high, dense.high / ours.low


def ratios(table: pd.DataFrame, metric: str, baseline: str = "dense_eager") -> pd.DataFrame:
    """Dense divided by ours, for a metric where less is better (milliseconds, bytes, joules).

    A timing is compared with the provider `baseline` of the same point, tokens, batch and dtype. A metric of a trained
    model (no provider) is compared with the dense parent on the same machine.

    Args:
        table: As `blast.experiment.records.table.load_table` makes it.
        metric: For instance `"latency"` or `"weights_bytes"`.
        baseline: Provider in the numerator: `dense_eager` or `dense_compiled`.

    Returns:
        Rows with the columns `COLUMNS`: `ratio` (above 1: ours needs less), `low` and `high` (from the quantiles; NaN
        without them), `gpu` (whether measured on one), and what was measured where. Rows of Triton's interpreter are
        left out.
    """
    rows = table[(table["status"] == "ok") & (table["metric"] == metric) & table["step"].isna()]
    rows = [row for row in rows.itertuples(index=False) if row.interpreter is not True]
    # A point can time several numbers of GPUs.
    timed = {_key(row, ("point", "gpus")): row for row in rows if row.provider == baseline}
    dense = {_key(row, ("point",)): row for row in rows if row.method == "dense" and pd.isna(row.provider)}
    found = []
    copied = [key for key in COLUMNS if key in table and key not in ("ratio", "low", "high")]
    for row in rows:
        if row.provider in DENSE_PROVIDERS or row.method == "dense":
            continue
        other = timed.get(_key(row, ("point", "gpus"))) if not pd.isna(row.provider) else None
        if other is None and row.parent:
            other = dense.get((*_key(row), row.parent))
        if other is None or not row.value:
            continue
        low, high = _interval(other, row)
        name = baseline if not pd.isna(row.provider) else "dense"
        values = {key: getattr(row, key) for key in copied}
        values |= {"baseline": name, "gpu": on_gpu(row), "ratio": other.value / row.value, "low": low, "high": high}
        found.append(values)
    return pd.DataFrame(found, columns=list(COLUMNS)).sort_values(
        ["hardware", "model", "dataset", "sparsity", "block", "tokens", "provider", "point"],
        kind="stable",
        ignore_index=True,
    )
