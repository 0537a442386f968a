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
from blast.sparsity.config import METHOD_DETAILS

KINDS = ("architectures", "datasets", "methods", "tasks", "benchmarks", "figures")


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
    if kind == "benchmarks":
        return {name: _first_line(Path(benchmark.__file__).with_name(f"{name}.py")) for name in SUITES}
    if kind == "figures":
        views = sorted((CHECKOUT / "paper_figures" / "views").glob("[!_]*.py"))
        return {file.stem: _first_line(file) for file in views}
    raise unknown_name("kind of name", kind, KINDS)


def _architecture(name: str) -> str:
    found = architectures.get(name)
    weights = f"; weights from {found.weights.label}" if found.weights else ""
    return f"{found.description}{weights}"


def _first_line(file: Path) -> str:
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def _first_comment(text: str) -> str:
    lines = takewhile(lambda line: line.startswith("#"), text.splitlines())
    return " ".join(line.lstrip("# ") for line in lines)
