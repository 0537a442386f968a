"""Titles of panels: what they say of a model, and how they are made to fit above their panels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

# Inches between a title and the next panel, and how far two panels of one row may differ in height.
GAP, SAME_ROW = 0.05, 0.5
# Letters are wider or narrower at other resolutions, by 4 %: titles are measured as they are saved.
DPI = 200
# The smallest font, in points, before a title goes on in another line.
SMALLEST = 6.0

Fits = Callable[[str], bool]


def start_and_grid(row: Any, grids: int) -> tuple[str, str]:
    """`, pretrained` unless a model was trained from scratch, and ` (study)` where a figure shows several grids.

    Args:
        row: Has the attributes `grid` and, where it is known, `start`.
        grids: How many grids the figure shows.
    """
    start = getattr(row, "start", None)
    named = start is not None and not pd.isna(start) and start != "scratch"
    return (f", {start}" if named else ""), (f" ({row.grid})" if grids > 1 else "")


def fit_titles(figure: Figure) -> None:
    """Makes the titles of all panels fit: in a smaller font, then in one more line, and then they are cut.

    A title may reach to the panel on its right, or to the edge of the figure. All titles keep the same font size.
    """
    panels = [axes for axes in figure.axes if axes.get_visible() and _title(axes).get_text()]
    if not panels:
        return
    before = figure.dpi
    figure.set_dpi(DPI)
    # A title that is too long would squeeze the panels, so they are placed under titles of one letter a line.
    texts = {axes: _title(axes).get_text() for axes in panels}
    for axes, text in texts.items():
        _title(axes).set_text("\n".join("x" for _ in text.split("\n")))
    figure.draw_without_rendering()
    rooms = {axes: _room(axes, figure) for axes in panels}
    for axes, text in texts.items():
        _title(axes).set_text(text)
    size = min(_title(axes).get_fontsize() for axes in panels)
    while size > SMALLEST and any(_width(_title(axes), size) > room for axes, room in rooms.items()):
        size -= 0.25
    for axes, room in rooms.items():
        title = _title(axes)
        title.set_fontsize(size)
        if _width(title, size) > room:
            title.set_text("\n".join(_wrapped(title, room)))
    figure.set_dpi(before)


def _title(axes: Axes) -> Text:
    titles: list[Text] = [axes._left_title, axes.title, axes._right_title]
    return next((title for title in titles if title.get_text()), titles[0])


def _room(axes: Axes, figure: Figure) -> float:
    """Pixels from the start of a title to the next panel on its right, or to the edge of the figure."""
    own = axes.get_window_extent()
    rights = [figure.bbox.width]
    for other in figure.axes:
        box = other.get_window_extent()
        if other.get_visible() and box.x0 > own.x0 + 1 and abs(box.y1 - own.y1) < SAME_ROW * figure.dpi:
            rights.append(box.x0)
    return min(rights) - own.x0 - GAP * figure.dpi


def _width(title: Text, size: float) -> float:
    """Pixels of a title in a font size."""
    before = title.get_fontsize()
    title.set_fontsize(size)
    width = title.get_window_extent().width
    title.set_fontsize(before)
    return float(width)


def _wrapped(title: Text, room: float) -> list[str]:
    """Its lines, each of which fits or is cut; one that is too long goes on in the next line."""
    whole = title.get_text()

    def fits(text: str) -> bool:
        title.set_text(text)
        return float(title.get_window_extent().width) <= room

    lines = [part for line in whole.split("\n") for part in _parts(line, fits)]
    title.set_text(whole)
    return lines


def _parts(line: str, fits: Fits) -> list[str]:
    first, rest = "", line.split()
    while rest and fits(f"{first} {rest[0]}".strip()):
        first = f"{first} {rest.pop(0)}".strip()
    if not rest:
        return [line]
    return [first, _cut(" ".join(rest), fits)] if first else [_cut(line, fits)]


def _cut(text: str, fits: Fits) -> str:
    if fits(text):
        return text
    while text and not fits(f"{text.rstrip()}…"):
        text = text[:-1]
    return f"{text.rstrip()}…"
