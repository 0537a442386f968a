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


def _folder(module: str) -> str:
    """The folder of its tests: `tests/` mirrors the sources."""
    return "tests/" + module.removeprefix("src/").removeprefix("blast/").rpartition("/")[0]


def tests_that_name(module: str, root: Path) -> list[str]:
    """The test files to run for a module.

    Args:
        module: Path of its file below `root`.
        root: The repository.

    Returns:
        Paths below `root`, at most `MOST_FILES`: the test of the same name, others in the folder of its tests, others
        that name it, those that use a file of `tests/support` which names it, and last the others in its folder.
    """
    name, folder, stem = dotted(module), _folder(module), Path(module).stem.strip("_")
    files = sorted((root / "tests").rglob("test_*.py"))
    support = {
        file.stem
        for file in (root / "tests" / "support").glob("*.py")
        if any(one == name or one.startswith(f"{name}.") for one in _names(file))
    }
    ranked = []
    for file in files:
        place, found = file.relative_to(root).as_posix(), _names(file)
        here = place.rpartition("/")[0] == folder
        direct = any(one == name or one.startswith(f"{name}.") for one in found)
        by_stem = here and file.stem.removeprefix("test_").startswith(stem)
        by_support = any(one.partition(".")[0] in support for one in found)
        if direct or by_stem or by_support or here:
            ranked.append((not by_stem, not (here and direct), not direct, not by_support, file.stat().st_size, place))
    return [place for *_, place in sorted(ranked)[:MOST_FILES]]
