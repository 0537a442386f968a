"""Shared by the views of whole training runs: the name and the line of a run, and the format of a time."""

from __future__ import annotations

from typing import Any

import pandas as pd

from paper_figures.views import _style as style
from paper_figures.views._titles import start_and_grid

LINES: dict[str, Any] = {
    "dense": "-", "blast": "-", "rigl_swap": (0, (4, 1.5)), "gmp": (0, (6, 1, 1, 1, 1, 1)), "small_dense": (0, (2, 1)),
}  # fmt: skip
# A method that is not listed.
OTHER_LINE = (0, (3, 1, 1, 1))
MASKED_LINE = (0, (1, 1.2))
# From how many seconds on a unit is used, its length in seconds, and its name.
UNITS = ((7200.0, 3600.0, "h"), (120.0, 60.0, "min"), (0.0, 1.0, "s"))


def stays_masked(point: Any) -> bool:
    """Whether a pruned run had to stay masked-dense (`execution: masked`)."""
    return point.execution == "masked"


def line_of(point: Any) -> Any:
    """Line style of a run."""
    return MASKED_LINE if stays_masked(point) else LINES.get(point.method, OTHER_LINE)


def unit_of(seconds: float) -> tuple[float, str]:
    """The unit that suits this time: its length in seconds, and its name."""
    return next((size, name) for least, size, name in UNITS if seconds >= least)


def time_label(seconds: float) -> str:
    """`12.3 min`; `–` for none."""
    if pd.isna(seconds):
        return "–"
    size, name = unit_of(seconds)
    return f"{seconds / size:.3g} {name}"


def run_label(point: Any) -> str:
    """`BLaST 95 %`, or `BLaST 95 %, masked` for a run that had to stay masked-dense."""
    if point.method == "dense":
        return "dense"
    return f"{style.method_label(point.method)} {100 * point.sparsity:g} %" + (", masked" * stays_masked(point))


def panel_title(point: Any, grids: int) -> str:
    """Two lines: model and dataset, with the grid where the figure shows several."""
    return f"{style.model_label(point.model)}\n{style.dataset_label(point.dataset)}{start_and_grid(point, grids)[1]}"
