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
    texts = []
    with tempfile.TemporaryDirectory() as place:
        for number, commit in enumerate((first, second)):
            root = Path(place, str(number))
            if not _extract(commit, root):
                return None
            known = Fingerprints({name: root / path for name, path in PACKAGES.items() if (root / path).is_dir()})
            try:
                reached = known.reached(Point.from_dict(dict(point)))
            except (BlastError, LookupError, SyntaxError):
                return None
            texts.append({name: known.code.text(name).text for name in reached})
    found: dict[str, list[str]] = {}
    for name in sorted(texts[0].keys() | texts[1].keys()):
        if texts[0].get(name, "") != texts[1].get(name, ""):
            found.setdefault(name.module, []).append(name.name or "(what its import does)")
    return found


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
