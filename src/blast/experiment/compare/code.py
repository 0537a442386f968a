"""Which definitions of the code that decides a point's numbers changed between two commits."""

from __future__ import annotations

import io
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blast.errors import BlastError
from blast.experiment.plan.paths import CHECKOUT
from blast.experiment.plan.point import Point
from blast.experiment.records.fingerprint import Fingerprints

PACKAGES = {"blast": "src/blast", "blast_kernels": "kernels"}


def changed_definitions(first: str, second: str, point: Mapping[str, Any]) -> dict[str, list[str]] | None:
    """The definitions that a point reaches and that two commits do not have alike, by module.

    Args:
        first: A commit of the checkout.
        second: Another one.
        point: As a record has it.

    Returns:
        By module the names, sorted; None if git or one of the commits is not here.
    """
    changed = _changed_files(first, second)
    if not changed:
        return None if changed is None else {}
    with tempfile.TemporaryDirectory() as place:
        before, after = (_code_of(commit, Path(place, commit[:12])) for commit in (first, second))
        if before is None or after is None:
            return None
        try:
            # What decides the numbers now; a definition that is gone was named by one that changed.
            reached = after.reached(Point.from_dict(dict(point)))
            names = sorted(name for name in reached if _file_of(name.module, after) in changed)
            differ = [name for name in names if before.code.text(name).text != after.code.text(name).text]
        except (BlastError, LookupError, SyntaxError):
            return None
    found: dict[str, list[str]] = {}
    for name in differ:
        found.setdefault(name.module, []).append(name.name or "(what its import does)")
    return found


def _changed_files(first: str, second: str) -> set[str] | None:
    asked = ["git", "-C", str(CHECKOUT), "diff", "--name-only", first, second, "--", *PACKAGES.values()]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return None if answer.returncode else set(answer.stdout.splitlines())


def _file_of(module: str, known: Fingerprints) -> str:
    """The file of a module in the checkout."""
    package, *parts = module.split(".")
    here = known.code.module(module)
    ending = "/__init__.py" if here and here.file.name == "__init__.py" else ".py"
    return "/".join([PACKAGES[package], *parts]) + ending


def _code_of(commit: str, root: Path) -> Fingerprints | None:
    if not _extract(commit, root):
        return None
    return Fingerprints({name: root / path for name, path in PACKAGES.items() if (root / path).is_dir()})


def _extract(commit: str, place: Path) -> bool:
    """Writes the code of a commit into a folder. Returns whether git has it."""
    asked = ["git", "-C", str(CHECKOUT), "archive", "--format=tar", commit, *PACKAGES.values()]
    try:
        answer = subprocess.run(asked, capture_output=True, check=False)
    except OSError:
        return False
    if answer.returncode:
        return False
    place.mkdir()
    with tarfile.open(fileobj=io.BytesIO(answer.stdout)) as packed:
        packed.extractall(place, filter="data")
    return True
