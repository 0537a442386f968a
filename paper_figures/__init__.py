"""The figures and tables of the paper, one file each, found by its name.

A figure is a file with `TITLE`, `NEEDS` and `draw(table) -> Figure`; a table has `rows(table) -> DataFrame` instead.
`NEEDS` lists the stages (`train`, `benchmark`) and metrics it is made of. Adding the file is all it takes. Files that
begin with an underscore are shared by the others.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from types import ModuleType

from blast.errors import unknown_name

FOLDER = Path(__file__).parent


def _functions(file: Path) -> set[str]:
    return {node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)}


def _with(function: str) -> list[str]:
    return sorted(file.stem for file in FOLDER.glob("[!_]*.py") if function in _functions(file))


def figures() -> list[str]:
    """Names of all figures; reads the files without running them, so it needs no plotting library."""
    return _with("draw")


def tables() -> list[str]:
    """Names of all tables."""
    return _with("rows")


def needs(name: str) -> list[str]:
    """Stages and metrics that a figure or table is made of.

    Raises:
        BlastError: if there is no such figure or table.
    """
    if name not in (*figures(), *tables()):
        raise unknown_name("figure or table", name, [*figures(), *tables()])
    for node in ast.parse((FOLDER / f"{name}.py").read_text()).body:
        if isinstance(node, ast.Assign) and any(getattr(target, "id", None) == "NEEDS" for target in node.targets):
            return list(ast.literal_eval(node.value))
    return []


def load(name: str) -> ModuleType:
    """The module of a figure or table.

    Raises:
        BlastError: if there is none of that name; the message gives the nearest.
    """
    known = [*figures(), *tables()]
    if name not in known:
        raise unknown_name("figure or table", name, known)
    return importlib.import_module(f"{__name__}.{name}")
