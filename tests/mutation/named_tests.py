"""Which test files name a module, the nearest first."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

# A survivor runs all of them; more files would find little and cost minutes.
MOST_FILES = 6


def dotted(module: str) -> str:
    """The name by which tests import a module: `kernels/linear/ops.py` gives `blast_kernels.linear.ops`."""
    parts = module.removesuffix(".py").removesuffix("/__init__").removeprefix("src/").split("/")
    return ".".join(["blast_kernels", *parts[1:]] if parts[0] == "kernels" else parts)


@cache
def _names(file: Path) -> frozenset[str]:
    """Every dotted name that a file imports or has in a string, as `monkeypatch.setattr` takes it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 200:
            found.add(node.value)
    return frozenset(found)


@cache
def _importers(root: Path, name: str) -> frozenset[str]:
    """The modules that import one, by their dotted names."""
    found = set()
    for folder in ("src/blast", "kernels", "paper_figures"):
        for file in (root / folder).rglob("*.py"):
            if _named(name, _names(file)):
                found.add(dotted(file.relative_to(root).as_posix()))
    return frozenset(found - {name})


def _named(module: str, names: frozenset[str]) -> bool:
    return any(one == module or one.startswith(f"{module}.") for one in names)


def _folder(module: str) -> str:
    """The folder of its tests: `tests/` mirrors the sources."""
    module = module.removeprefix("src/").removeprefix("blast/").replace("paper_figures/views/", "paper_figures/")
    return "tests/" + module.rpartition("/")[0]


def nearest_tests(module: str, root: Path) -> list[str]:
    """The test files to run for a module.

    Args:
        module: Path of its file below `root`.
        root: The repository.

    Returns:
        Paths below `root`, at most `MOST_FILES`: the test of the same name, others in the folder of its tests, others
        that name it, those that use a file of `tests/support` which names it, those that name a module which imports
        it, and last the others in its folder.
    """
    name, folder, stem = dotted(module), _folder(module), Path(module).stem.strip("_")
    files = sorted((root / "tests").rglob("test_*.py"))
    support = {file.stem for file in (root / "tests" / "support").glob("*.py") if _named(name, _names(file))}
    importers = _importers(root, name)
    ranked = []
    for file in files:
        place, found = file.relative_to(root).as_posix(), _names(file)
        here = place.rpartition("/")[0] == folder
        # A view is drawn by its name: `load("pareto")`.
        direct = _named(name, found) or (folder == "tests/paper_figures" and stem in found)
        by_stem = here and file.stem.removeprefix("test_").startswith(stem)
        by_support = any(one.partition(".")[0] in support for one in found)
        indirect = any(_named(importer, found) for importer in importers)
        near = (by_stem, here and direct, direct, by_support, here and indirect, indirect, here)
        if any(near):
            ranked.append((near.index(True), file.stat().st_size, place))
    return [place for *_, place in sorted(ranked)[:MOST_FILES]]
