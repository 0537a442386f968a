"""Where fetched and prepared data live, and how several processes share them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blast.errors import BlastError
from blast.files import locked, read_json

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
    """Fills a folder by `build` unless it exists, and returns its facts.

    Args:
        folder: The finished folder; its name should hold a digest of everything that its content depends on.
        build: Fills the empty folder it is given and returns the facts, which are kept in `facts.json`.

    Returns:
        The facts, read back from the file.
    """
    facts = folder / FACTS
    if not facts.exists():
        with locked(folder):
            if not facts.exists():
                # One fixed name, so that the next build replaces what a killed one left.
                aside = folder.with_name(folder.name + ".partial")
                shutil.rmtree(aside, ignore_errors=True)
                shutil.rmtree(folder, ignore_errors=True)
                aside.mkdir(parents=True)
                made = build(aside)
                (aside / FACTS).write_text(json.dumps(made, indent=1, sort_keys=True) + "\n", encoding="utf-8")
                os.replace(aside, folder)
    return read_json(facts, "list of facts", "run again: what it describes is made again.")
