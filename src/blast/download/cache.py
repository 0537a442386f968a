"""Where fetched and prepared data live, and how several processes share them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blast.download.contents import fault_of, write_contents
from blast.errors import BlastError
from blast.files import locked, remove

FACTS = "facts.json"


def cache_root() -> Path:
    """The cache folder: `$BLAST_CACHE`, else `~/.cache/blast`.

    Raises:
        BlastError: if it is a file, or if this account has no home folder and `BLAST_CACHE` is not set.
    """
    try:
        root = Path(os.environ.get("BLAST_CACHE") or "~/.cache/blast").expanduser().absolute()
    except RuntimeError as error:
        raise BlastError("this account has no home folder for the cache; set BLAST_CACHE to a folder.") from error
    if root.is_file():
        raise BlastError(f"{root}: the cache has to be a folder, and this is a file; set BLAST_CACHE to a folder.")
    return root


def build_once(folder: Path, build: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Fills a folder by `build` unless it is there and whole, and returns its facts.

    Every use compares the files with the digests that were taken when they were made (see `blast.download.contents`).
    A folder that is damaged is made again.

    Args:
        folder: The finished folder; its name should hold a digest of everything that its content depends on.
        build: Fills the empty folder it is given and returns the facts, which are kept in `facts.json`.

    Returns:
        The facts, read back from the file.
    """
    if fault_of(folder, _facts) is not None:
        with locked(folder):
            # Another process may have made it by now.
            if (fault := fault_of(folder, _facts)) is not None:
                if folder.exists():
                    print(f"{folder}: {fault}, so it is made again", file=sys.stderr, flush=True)
                # One fixed name, so that the next build replaces what a killed one left.
                aside = folder.with_name(folder.name + ".partial")
                remove(aside)
                aside.mkdir(parents=True)
                made = build(aside)
                (aside / FACTS).write_text(json.dumps(made, indent=1, sort_keys=True) + "\n", encoding="utf-8")
                write_contents(aside)
                # Only now: what cannot be made again stays as it is.
                remove(folder)
                os.replace(aside, folder)
    return _facts(folder)


def is_whole(folder: Path) -> bool:
    """Whether a folder that `build_once` made is still what it was."""
    return fault_of(folder, _facts) is None


def _facts(folder: Path) -> dict[str, Any]:
    """The facts of a finished folder.

    Raises:
        OSError: if there is no such file.
        ValueError: if it holds no mapping.
    """
    values = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError(f"{folder / FACTS} holds no mapping")
    return values
