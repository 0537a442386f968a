"""The figures and tables of the report, read from the files that were drawn of them."""

from __future__ import annotations

import ast
import base64
import io
import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from docutils.core import publish_parts
from markdown_it import MarkdownIt
from PIL import Image, UnidentifiedImageError

from blast.experiment.todo.views import View, constant_of, find_views
from blast.untrusted import MIB, NotPlainFileError, read_bytes

# In this order; a view with another `CATEGORY`, or without one, comes last.
CATEGORIES = ("Claims", "Quality", "Training", "Kernels", "Inference", "Masks")
OTHERS = "More"
LARGEST = 64 * MIB
# Pixels of a picture for one of the screen: pictures are drawn for paper, with 200 dots an inch.
PIXELS = 1.6
# A figure without anything to show says in this text of its PNG file why; see `paper_figures.views._write`.
EMPTY = "Description"
# Rows of a table that are printed on paper.
PRINTED_ROWS = 60
# A table of more columns is printed across a page.
NARROW = 7


@dataclass(frozen=True)
class Shown:
    """A figure or table as the report shows it.

    Attributes:
        name: Name of its file in `paper_figures/views`.
        title: What it shows, in a few words.
        category: The part of the report that it stands in.
        caption: Its caption in HTML.
    """

    name: str
    title: str
    category: str
    caption: str


@dataclass(frozen=True)
class Picture(Shown):
    """A figure.

    Attributes:
        png: The picture; empty if it is not drawn.
        size: Width and height on a screen, pixels.
        empty: Why there is nothing to see on it, such as "not run"; else nothing.
    """

    png: bytes
    size: tuple[int, int]
    empty: str

    @cached_property
    def data(self) -> str:
        """The picture as the address of an image."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


@dataclass(frozen=True)
class Table(Shown):
    """A table as it is printed.

    Attributes:
        remarks: The sentences above and below it.
        columns: Heads of the columns; none if it is not drawn.
        rows: The cells.
    """

    remarks: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()

    @property
    def is_wide(self) -> bool:
        """Whether it is printed across a page."""
        return len(self.columns) > NARROW

    def with_first(self, *columns: str) -> Table:
        """The same table, beginning with some of its columns: on a phone, one sees these at once."""
        first = [self.columns.index(column) for column in columns if column in self.columns]
        order = [*first, *(place for place in range(len(self.columns)) if place not in first)]
        names, *rows = (tuple(line[place] for place in order) for line in (self.columns, *self.rows))
        return replace(self, columns=names, rows=tuple(rows))

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """A class for each column: `number` where all cells are numbers, which are set to the right."""
        cells = zip(*self.rows, strict=True) if self.rows else [()] * len(self.columns)
        return tuple("number" if _are_numbers(column) else "" for column in cells)


def _are_numbers(cells: tuple[str, ...]) -> bool:
    filled = [cell for cell in cells if cell not in ("", "–")]
    return bool(filled) and all(re.fullmatch(r"[+−-]?[\d.,]+( ?[×%])?", cell) for cell in filled)


def shown_views(folder: Path, captions: Path, drawn: Path) -> list[Picture | Table]:
    """All figures and tables, by category and then by name; what was not drawn is empty.

    Args:
        folder: `paper_figures/views`.
        captions: The folder with the caption of each view, `<name>.rst`.
        drawn: The folder with the files of the views.
    """
    found = [_shown(view, captions, drawn) for view in find_views(folder, drawn)]
    return sorted(found, key=lambda view: (category_order(view.category), view.name))


def category_order(category: str) -> tuple[int, str]:
    """Where a category stands in the report."""
    return (CATEGORIES.index(category) if category in CATEGORIES else len(CATEGORIES), category)


def _shown(view: View, captions: Path, drawn: Path) -> Picture | Table:
    body = ast.parse(view.code.read_text(encoding="utf-8")).body
    title, category = (constant_of(body, name) for name in ("TITLE", "CATEGORY"))
    caption = captions / f"{view.name}.rst"
    about = (
        view.name,
        title or view.name.replace("_", " "),
        category or OTHERS,
        as_html(caption.read_text(encoding="utf-8")) if caption.is_file() else "",
    )
    if view.is_figure:
        return Picture(*about, *read_picture(_read(drawn / f"{view.name}.png")))
    return Table(*about, *read_table(_read(drawn / f"{view.name}.md").decode("utf-8", "replace")))


def read_picture(png: bytes) -> tuple[bytes, tuple[int, int], str]:
    """A picture, its size on a screen, and why there is nothing to see on it; no bytes if it is no picture."""
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            width, height = image.size
            return png, (round(width / PIXELS), round(height / PIXELS)), str(image.info.get(EMPTY, ""))
    except (UnidentifiedImageError, OSError, ValueError):
        return b"", (0, 0), ""


def _read(file: Path) -> bytes:
    try:
        return read_bytes(file, LARGEST)
    except (OSError, NotPlainFileError):
        return b""


def as_html(caption: str) -> str:
    """A caption in reStructuredText as HTML."""
    settings = {"raw_enabled": False, "file_insertion_enabled": False, "report_level": 5, "default_role": "literal"}
    text = re.sub(r"(?<![`:])`([^`]+)`(?!`)", r"``\1``", caption)
    parts = publish_parts(text, writer="html5", settings_overrides=settings)
    return str(parts["fragment"])


def read_table(text: str) -> tuple[tuple[str, ...], tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """The sentences around a table in Markdown, the heads of its columns, and its rows. All of it is plain text."""
    remarks: list[str] = []
    rows: list[list[str]] = []
    in_table = False
    # Without any inline mark: the cells may come from a record of anywhere, and show as they are.
    for token in MarkdownIt("zero").enable("table").parse(text):
        match token.type:
            case "table_open" | "table_close":
                in_table = token.type == "table_open"
            case "tr_open":
                rows.append([])
            case "inline" if in_table:
                rows[-1].append(token.content)
            case "inline":
                remarks.append(token.content.replace("`", ""))
    columns, *cells = map(tuple, rows) if rows else [()]
    return tuple(remarks), tuple(columns), tuple(cells)
