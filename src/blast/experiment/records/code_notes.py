"""Which modules changed since a record was made: `code/<fingerprint>.json` has the digest of each module of it.

A fingerprint is one digest, so it says that the code changed, but not where. A note is written once a fingerprint, and
nothing depends on it: records without one are compared with git, as far as it knows their commit.
"""

from __future__ import annotations

import re
import subprocess
from functools import cache
from typing import Any

from blast.experiment.plan.paths import CHECKOUT, GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.records.fingerprint import fingerprint, module_digests
from blast.files import write_json
from blast.untrusted import MIB, parse_json, read_bytes

# What a package is called in the checkout.
FOLDERS = {"src/blast/": "blast.", "kernels/": "blast_kernels."}
DIGEST = re.compile(r"(sha256:)?[0-9a-f]{16,64}")


def note_code(folder: GridFolder, point: Point) -> None:
    """Notes the modules behind the fingerprint that a point has now; what was noted stays."""
    file = folder.code(fingerprint(point))
    if not file.is_file():
        write_json(file, module_digests(point))


def changed_modules(record: dict[str, Any], point: Point, folder: GridFolder) -> tuple[str, ...] | None:
    """The modules by which the code of a point differs from that of its record; None if nothing tells.

    Args:
        record: The record.
        point: The point as it is planned now.
        folder: Folder of its grid.
    """
    made_by = str(record["run"].get("fingerprint") or "")
    now = module_digests(point)
    then = _noted(folder, made_by)
    if then is not None:
        return tuple(sorted(name for name in {*then, *now} if then.get(name) != now.get(name)))
    edited = _edited_since(str(record["run"].get("commit") or ""))
    return None if edited is None else tuple(sorted(edited & set(now)))


@cache
def _noted(folder: GridFolder, made_by: str) -> dict[str, str] | None:
    if not DIGEST.fullmatch(made_by):
        return None
    try:
        found = parse_json(read_bytes(folder.code(made_by), MIB))
    except (OSError, ValueError, RecursionError):
        return None
    good = isinstance(found, dict) and all(isinstance(value, str) for value in found.values())
    return found if good else None


@cache
def _edited_since(commit: str) -> set[str] | None:
    """Modules whose files differ from those of a commit; None if git does not know it."""
    if not re.fullmatch("[0-9a-f]{7,40}", commit):
        return None
    command = ["git", "-C", str(CHECKOUT), "diff", "--name-only", commit, "--", *FOLDERS]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    names = set()
    for path in found.stdout.splitlines():
        for start, package in FOLDERS.items():
            if path.startswith(start) and path.endswith(".py"):
                inner = path.removeprefix(start).removesuffix(".py").removesuffix("/__init__")
                names.add(package + inner.replace("/", "."))
    return names
