"""Whether a folder of the cache is still what was made: the digests of its files, and when they were last compared.

Beside the files lies `contents.json`, with the digest of each. All files up to `LARGE` bytes are read at each use. A
larger one is read again only if its size or its time has changed, as reading gigabytes would take minutes at each run.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from blast.errors import BlastError
from blast.files import file_digest, write_atomically

CONTENTS = "contents.json"
# 256 MB are digested in a fifth of a second.
LARGE = 256_000_000
# Folders that this process found whole, by the sizes and times of their files.
_WHOLE: dict[Path, dict[str, Any]] = {}


def write_contents(folder: Path) -> None:
    """Notes the digests of all files of a folder that has just been made."""
    files = {name: {"digest": file_digest(folder / name), "seen": seen} for name, seen in _seen(folder).items()}
    (folder / CONTENTS).write_text(json.dumps(files, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def fault_of(folder: Path, facts: Callable[[Path], dict[str, Any]]) -> str | None:
    """What is wrong with a folder of the cache, in a few words; None if it is whole.

    Args:
        folder: The folder.
        facts: Reads its facts; of a folder that an earlier version made, these are all that can be checked at first.
    """
    if folder.is_symlink() or not folder.is_dir():
        return "it is no folder" if folder.exists() or folder.is_symlink() else "it does not exist"
    seen = _seen(folder)
    if _WHOLE.get(folder) == seen:
        return None
    try:
        found = facts(folder)
        known = _known(folder, found)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return "its list of files or of facts is damaged"
    if missing := sorted(known.keys() - seen.keys()):
        return f"{missing[0]} is missing"
    for name, entry in known.items():
        large = seen[name][0] > LARGE and seen[name] == entry.get("seen")
        if not large and file_digest(folder / name) != entry["digest"]:
            return f"{name} was altered"
    if any(entry.get("seen") != seen[name] for name, entry in known.items()):
        _note(folder, known, seen)
    _WHOLE[folder] = _seen(folder)
    return None


def _known(folder: Path, facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The files of a folder with their digests."""
    if (folder / CONTENTS).is_symlink():
        raise ValueError("a link")
    if (folder / CONTENTS).exists():
        known = json.loads((folder / CONTENTS).read_text(encoding="utf-8"))
        if not known or not all(isinstance(entry["digest"], str) for entry in known.values()):
            raise ValueError("no digests")
        return known
    # Made by an earlier version: its facts may have digests of some files, and the others are taken as they are.
    given = facts.get("digests", {})
    return {name: {"digest": given.get(name) or file_digest(folder / name)} for name in {*_seen(folder), *given}}


def _seen(folder: Path) -> dict[str, list[int]]:
    """Size and time of each file in a folder, `contents.json` left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.name != CONTENTS:
            about = path.stat()
            found[path.relative_to(folder).as_posix()] = [about.st_size, about.st_mtime_ns]
    return found


def _note(folder: Path, known: dict[str, dict[str, Any]], seen: dict[str, list[int]]) -> None:
    """Keeps the sizes and times of files whose digests were right; a cache that cannot be written to is read again."""
    entries = {name: entry | {"seen": seen[name]} for name, entry in known.items()}
    with suppress(BlastError):
        write_atomically(folder / CONTENTS, json.dumps(entries, indent=1, sort_keys=True) + "\n")
