"""Shared by the views of the suite `training_step`: its cases, their labels, and the points that were not run."""

from __future__ import annotations

from typing import Any

import pandas as pd

from blast.experiment.analysis import pretraining
from blast.experiment.analysis.comparison import missing
from blast.experiment.analysis.pretraining import SUITE
from paper_figures.views import _style as style
from paper_figures.views._kernels import block_label, by_size


def cases(rows: pd.DataFrame) -> list[tuple[str, str, int]]:
    """Model, block and tokens of each timed step, largest models first."""
    found = pretraining.cases(rows)
    place = {model: number for number, model in enumerate(by_size(case[0] for case in found))}
    return sorted(found, key=lambda case: (place[case[0]], case[1:]))


def case_label(case: tuple[str, str, int]) -> str:
    """`GPT-2 XL, block 64`."""
    return f"{style.model_label(case[0])}, block {block_label(case[1])}"


def lost_points(table: pd.DataFrame, shown: int = 4) -> str:
    """A sentence for the footer with the points of the suite that failed or were not run."""
    rows = missing(table[(table["suite"] == SUITE) & table["provider"].isna()])
    parts = []
    for status, lost in rows.groupby("status", sort=True):
        names = [f"{style.model_label(row.model)} {100 * row.sparsity:g} %" for row in lost.itertuples()]
        more = f" and {len(names) - shown} more" if len(names) > shown else ""
        parts.append(f"{str(status).capitalize()}: {', '.join(names[:shown])}{more}.")
    return " ".join(parts)


def why_empty(table: pd.DataFrame) -> str:
    """`failed` if every point of the suite failed, else `not run`."""
    return style.why_empty(table[table["suite"] == SUITE])


def panels(count: int, height: float, columns: int = 4, **more: Any) -> tuple[Any, list[Any]]:
    """A figure with `count` panels, and their axes; the rest of the grid is hidden."""
    columns = min(columns, count)
    lines = -(-count // columns)
    figure = style.new_figure(style.DOUBLE if columns > 1 else style.COLUMN, height * lines + 0.6)
    axes = list(figure.subplots(lines, columns, squeeze=False, **more).flat)
    for place in axes[count:]:
        place.set_visible(False)
    return figure, axes[:count]
