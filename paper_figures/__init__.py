"""The figures and tables of the paper, one file each in `views/`, found by its name; what they make is written here.

A figure is a file with `TITLE` and `draw(table) -> Figure`; a table has `rows(table) -> DataFrame` instead, with `KEY`
and `SHOWN_KEY`, the columns that say what a row is about (see `_rows`). A table may also define `printed(frame)`, its
rows as text, and `remarks(frame)`, sentences on top of them. A view that reads the rows of some suites only names them
in `SUITES`, and is drawn again only when these change; files of the repository that it reads besides records and
`config/*.csv` are named in `READS`, as patterns. To add a view, add its file. Files that begin with an underscore are
shared by the others.
"""

from __future__ import annotations

import ast
import importlib
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from blast.errors import unknown_name

FOLDER = Path(__file__).parent / "views"


@cache
def _functions(file: Path, changed: int) -> frozenset[str]:
    """The functions of a file as it is since `changed`, its time of change."""
    return frozenset(node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef))


def _with(function: str) -> list[str]:
    files = FOLDER.glob("[!_]*.py")
    return sorted(file.stem for file in files if function in _functions(file, file.stat().st_mtime_ns))


def figures() -> list[str]:
    """Names of all figures. The files are parsed, not imported, so no plotting library is needed."""
    return _with("draw")


def tables() -> list[str]:
    """Names of all tables."""
    return _with("rows")


def load(name: str) -> ModuleType:
    """The module of a figure or table.

    Raises:
        BlastError: if no figure or table has that name; the message suggests the nearest one.
    """
    known = [*figures(), *tables()]
    if name not in known:
        raise unknown_name("figure or table", name, known)
    return importlib.import_module(f"{__name__}.views.{name}")


def rows_of(view: ModuleType, table: Any) -> Any:
    """The rows of a table that a view reads: those of its `SUITES`, else all."""
    suites = getattr(view, "SUITES", None)
    return table if suites is None else table[table["suite"].isin(suites)]
