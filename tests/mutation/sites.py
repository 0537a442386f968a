"""Which places of a module may be mutated, and which of them are drawn. Needs the standard library alone."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

Drawn = TypeVar("Drawn")

# The library, and what makes findings of its records. What reaches a user by the workflow has tests of its own.
FOLDERS = (
    *(
        f"src/blast/{room}"
        for room in (
            "architectures",
            "block_sparse",
            "checkpoint",
            "evaluation",
            "generation",
            "layers",
            "model",
            "sparsity",
            "tensor_parallel",
            "training",
            "experiment/analysis",
            "experiment/plan",
            "experiment/records",
        )
    ),
    "kernels",
    "paper_figures",
)

# Modules that do nothing without a GPU: here no test can notice a change.
ONLY_ON_A_GPU = frozenset(
    {
        "src/blast/training/cuda_graphs.py",
        "src/blast/sparsity/cuda_graphs.py",
    }
)

# Changes that are none: `==` and `is` agree for None, for small numbers and for interned strings.
SAME_RESULT = ("_Is", "_IsNot", "_Is_Eq", "_Is_NotEq", "_IsNot_Eq", "_IsNot_NotEq")


class Place(NamedTuple):
    """First character of what is changed: line from 1, column from 0 in characters."""

    line: int
    column: int


def modules(root: Path) -> list[Path]:
    """The modules under test, sorted."""
    found = {file for folder in FOLDERS for file in (root / folder).rglob("*.py")}
    return sorted(file for file in found if file.relative_to(root).as_posix() not in ONLY_ON_A_GPU)


class Unmutated:
    """The places of a source where no test could notice a change: annotations, blocks for the type checker, and guards
    against mistakes of a programmer (`strict=True`, `frozen=True`).

    Args:
        source: Text of a module.
        cosmetic: Whether its numbers are sizes and colours of a picture.
    """

    def __init__(self, source: str, cosmetic: bool = False) -> None:
        self._cosmetic = cosmetic
        self._spans = [
            ((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset))
            for node in _never_run(ast.parse(source))
        ]

    def __contains__(self, mutation: tuple[str, Place]) -> bool:
        """Whether an operator (as cosmic-ray names it) at a place makes no difference that a test may ask for."""
        operator, place = mutation
        if operator.startswith("core/ReplaceComparisonOperator") and operator.endswith(SAME_RESULT):
            return True
        if self._cosmetic and operator == "core/NumberReplacer":
            return True
        return any(first <= place < last for first, last in self._spans)


def _never_run(tree: ast.Module) -> Iterator[ast.expr | ast.stmt]:
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in ("strict", "frozen", "slots", "kw_only"):
            yield node.value
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = node.args
            every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
            yield from (one.annotation for one in every if one and one.annotation)
            if node.returns:
                yield node.returns
        elif isinstance(node, ast.AnnAssign):
            yield node.annotation
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            yield node


def draw(sites: Mapping[str, Iterable[Drawn]], count: int, seed: str) -> list[Drawn]:
    """Draws sites so that they spread over the modules: one of each module, then a second one, and so on.

    Args:
        sites: The sites of each module; a site is told from others of its module by its `repr`.
        count: How many to draw.
        seed: Another seed gives other sites. A site keeps its rank as long as its `repr` stays.

    Returns:
        At most `count` sites. A larger count begins with the same sites.
    """

    def rank(module: str, site: object) -> str:
        return hashlib.sha256(f"{seed} {module} {site!r}".encode()).hexdigest()

    ranked = []
    for module, found in sites.items():
        order = sorted(found, key=lambda site: rank(module, site))
        ranked += [(turn, rank(module, site), site) for turn, site in enumerate(order)]
    ranked.sort(key=lambda entry: entry[:2])
    return [site for _, _, site in ranked[:count]]
