"""Where fetched and prepared data live, and how several processes share them."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FACTS = "facts.json"


def cache_root() -> Path:
    """The cache folder: `$BLAST_CACHE`, else `~/.cache/blast`."""
    return Path(os.environ.get("BLAST_CACHE") or Path.home() / ".cache" / "blast").expanduser().absolute()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock of `path` (a file `<path>.lock` beside it); others wait.

    The kernel lets go of the lock when its holder dies, so none is ever left behind by a crash.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(path.name + ".lock"), "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def write_atomically(path: Path, text: str) -> None:
    """Writes a file such that it is seen whole or not at all."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def build_once(folder: Path, build: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Fills `folder` by `build` unless it is there already, and returns its facts.

    Args:
        folder: The finished folder; its name should hold a digest of everything that decides its content.
        build: Fills the empty folder it is given and returns the facts, which are kept in `facts.json`.

    Returns:
        The facts, read back from the file.
    """
    facts = folder / FACTS
    if not facts.exists():
        with locked(folder):
            if not facts.exists():
                # One fixed name: what a killed build left is overwritten by the next.
                aside = folder.with_name(folder.name + ".partial")
                shutil.rmtree(aside, ignore_errors=True)
                shutil.rmtree(folder, ignore_errors=True)
                aside.mkdir(parents=True)
                made = build(aside)
                (aside / FACTS).write_text(json.dumps(made, indent=1, sort_keys=True) + "\n", encoding="utf-8")
                os.replace(aside, folder)
    return json.loads(facts.read_text(encoding="utf-8"))
