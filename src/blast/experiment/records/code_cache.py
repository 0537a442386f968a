"""Digests of code, kept between processes: to read all of it takes seconds, and every job of a grid needs the same.

`<cache>/code/<digest of all files of the packages>.json` holds what was found in them, by key. A file that is damaged,
or of other files, counts as none, and a folder that cannot be written is no reason to stop.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from blast.download.cache import cache_root
from blast.errors import BlastError
from blast.files import canonical_json, json_digest, write_json
from blast.untrusted import MIB, parse_json, read_bytes

# Files that stay, the newest: each edit of the code begins one.
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


class CodeCache:
    """What was found in the code of some packages, as they are now.

    Args:
        roots: Folder of each package, by its import name.
    """

    def __init__(self, roots: Mapping[str, Path]) -> None:
        self._digest = source_digest(roots)
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

    def _file(self) -> Path | None:
        try:
            return cache_root() / "code" / f"{self._digest[:32]}.json"
        except BlastError:
            return None

    def _read(self) -> dict[str, Any]:
        file = self._file()
        try:
            found = parse_json(read_bytes(file, 16 * MIB)) if file else None
            values: dict[str, Any] = found["values"]
            whole = found["digest"] == json_digest([self._digest, values])
        except (BlastError, OSError, ValueError, LookupError, TypeError, RecursionError):
            return {}
        return values if whole and isinstance(values, dict) else {}

    def _write(self) -> None:
        file = self._file()
        if file is None:
            return
        # Others may have found more in the meantime.
        self._values = {**self._read(), **self._values}
        with suppress(BlastError, OSError):
            write_json(file, {"digest": json_digest([self._digest, self._values]), "values": self._values})
            others = sorted(file.parent.glob("*.json"), key=lambda other: other.stat().st_mtime)
            for old in others[:-KEPT]:
                old.unlink(missing_ok=True)
