"""Digests of code, kept between processes: to read all of it takes seconds, and every job of a grid needs the same.

`<cache>/code/<digest of all files of the packages>.json` holds what was found in them, by key. A file that is damaged,
or of other files, counts as none, and a folder that cannot be written is no reason to stop.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from blast.download.cache import cache_root
from blast.errors import BlastError
from blast.files import canonical_json, json_digest, write_json
from blast.untrusted import MIB, parse_json, read_bytes

KERNELS = "blast_kernels"
# Files that stay, the newest of a kind: each edit of the code begins one.
KEPT = 8


def source_digest(roots: Mapping[str, Path]) -> str:
    """Digest of every file of some packages, bytecode left out, in hexadecimal.

    Args:
        roots: Folder of each package, by its import name.
    """
    state = hashlib.sha256()
    for package, root in sorted(roots.items()):
        for file in sorted(root.rglob("*")):
            if file.suffix != ".pyc" and file.is_file():
                state.update(f"{package}/{file.relative_to(root).as_posix()}\0".encode())
                state.update(hashlib.sha256(file.read_bytes()).digest())
    return state.hexdigest()


@cache
def installed_roots() -> dict[str, Path]:
    """The folder of `blast`, and that of its kernels if they are installed."""
    roots = {"blast": Path(__file__).resolve().parents[2]}
    kernels = find_spec(KERNELS)
    if kernels and kernels.submodule_search_locations:
        roots[KERNELS] = Path(next(iter(kernels.submodule_search_locations)))
    return roots


@cache
def installed_digest() -> str:
    """Digest of every file of the packages that are installed here, as they were when this process looked first."""
    return source_digest(installed_roots())


def beside_code(ending: str, digest: str | None = None) -> Path | None:
    """A file of the cache that belongs to one state of the code; None where there can be no cache.

    Args:
        ending: How its name ends.
        digest: Digest of the code; None for what is installed here.
    """
    try:
        return cache_root() / "code" / f"{(digest or installed_digest())[:32]}{ending}"
    except BlastError:
        return None


def keep_newest(folder: Path, ending: str) -> None:
    """Removes files of earlier states of the code, all but the newest few.

    Raises:
        OSError: if the folder cannot be read.
    """
    others = sorted(folder.glob(f"*{ending}"), key=lambda other: other.stat().st_mtime)
    for old in others[:-KEPT]:
        old.unlink(missing_ok=True)


class CodeCache:
    """What was found in the code of some packages, as they are now.

    Args:
        roots: Folder of each package, by its import name; None for those that are installed here.
    """

    def __init__(self, roots: Mapping[str, Path] | None = None) -> None:
        self._roots = installed_roots() if roots is None else roots
        self._digest = installed_digest() if roots is None else source_digest(roots)
        self._file = beside_code(".json", self._digest)
        self._values: dict[str, Any] = self._read()

    def get(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """The value of a key, made if it is not known.

        Args:
            key: What it is of; a JSON value.
            make: Makes it; a JSON value.
        """
        name = canonical_json(key)
        if name not in self._values:
            self._values[name] = json.loads(json.dumps(make()))
            self._write()
        return self._values[name]

    def _read(self) -> dict[str, Any]:
        try:
            found = parse_json(read_bytes(self._file, 16 * MIB)) if self._file else None
            values: dict[str, Any] = found["values"]
            whole = found["digest"] == json_digest([self._digest, values])
        except (BlastError, OSError, ValueError, LookupError, TypeError, RecursionError):
            return {}
        return values if whole and isinstance(values, dict) else {}

    def _write(self) -> None:
        # Files that were edited while this process ran are those of another digest.
        if self._file is None or source_digest(self._roots) != self._digest:
            return
        # Others may have found more in the meantime.
        self._values = {**self._read(), **self._values}
        with suppress(BlastError, OSError):
            write_json(self._file, {"digest": json_digest([self._digest, self._values]), "values": self._values})
            keep_newest(self._file.parent, self._file.suffix)
