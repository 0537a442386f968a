"""Shared by the tables of quality: the name of a model by its method, width, variant and teacher."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pandas as pd

from blast.experiment.analysis.recipe import has_equal_weights
from blast.experiment.plan.grid import SMALL_DENSE
from paper_figures.views import _style as style


def small_dense_name(row: Any) -> str:
    """`equal weights, ffn 640` of a small dense model."""
    known = SimpleNamespace(**{key: row[key] for key in ("method", "sparsity", "ffn")}, model=row["architecture"])
    kind = "equal weights" if has_equal_weights(known) else row["variant"].replace("-", " ") or "given width"
    return f"{kind}, ffn {row['ffn']}"


def model_name(row: Any) -> str:
    """`gradual magnitude (GMP) (linear), taught by dense`."""
    label = style.method_label(row["method"])
    if row["method"] == SMALL_DENSE and not pd.isna(row["ffn"]):
        label += f" ({small_dense_name(row)})"
    elif isinstance(row["variant"], str) and row["variant"] and row["variant"] != "taught":
        label += f" ({row['variant'].replace('-', ' ')})"
    return label + (f", taught by {row['teacher']}" if isinstance(row["teacher"], str) else "")
