"""The names that a config may use, with a line about each: what `blast list` prints."""

from __future__ import annotations

import ast
from itertools import takewhile
from pathlib import Path

from blast import architectures, benchmark, datasets
from blast.benchmark.settings import SUITES
from blast.errors import unknown_name
from blast.experiment.language.tasks_of_lm_eval import task_names, task_text
from blast.experiment.plan.paths import CHECKOUT
from blast.experiment.todo.views import find_views
from blast.sparsity.config import METHOD_DETAILS

KINDS = ("architectures", "datasets", "methods", "tasks", "suites", "figures", "tables", "configs", "profiles")


def catalogue(kind: str) -> dict[str, str]:
    """Descriptions by name.

    Args:
        kind: One of `KINDS`.

    Raises:
        BlastError: if there is no such kind; the message gives the nearest one.
    """
    if kind == "architectures":
        return {name: _architecture(name) for name in architectures.names()}
    if kind == "datasets":
        return {name: f"{datasets.get(name).LABEL}: {datasets.get(name).DESCRIPTION}" for name in datasets.names()}
    if kind == "methods":
        return {"dense": "No pruning."} | {name: method.description for name, method in METHOD_DETAILS.items()}
    if kind == "tasks":
        return {name: _first_comment(task_text(name)) for name in task_names()}
    if kind == "suites":
        return {name: _first_line(Path(benchmark.__file__).with_name(f"{name}.py")) for name in SUITES}
    if kind in ("figures", "tables"):
        views = find_views(CHECKOUT / "paper_figures" / "views", Path())
        return {view.name: _first_line(view.code) for view in views if view.is_figure == (kind == "figures")}
    if kind == "configs":
        files = sorted((CHECKOUT / "config").glob("*.yaml"))
        return {file.stem: _first_sentence(_without_schema(file.read_text(encoding="utf-8"))) for file in files}
    if kind == "profiles":
        files = sorted((CHECKOUT / "profiles").glob("*/config*.yaml"))
        return {file.parent.name: _first_sentence(file.read_text(encoding="utf-8")) for file in files}
    raise unknown_name("kind of name", kind, KINDS)


def _architecture(name: str) -> str:
    found = architectures.get(name)
    weights = f"; weights from {found.weights.label}" if found.weights else ""
    return f"{found.description}{weights}"


def _first_line(file: Path) -> str:
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def _without_schema(text: str) -> str:
    """A config without the line that tells editors its schema."""
    return text.partition("\n")[2] if text.startswith("# yaml-language-server") else text


def _first_sentence(text: str) -> str:
    return _first_comment(text).partition(". ")[0].removesuffix(".") + "."


def _first_comment(text: str) -> str:
    lines = takewhile(lambda line: line.startswith("#"), text.splitlines())
    return " ".join(line.lstrip("# ") for line in lines)
