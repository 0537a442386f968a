"""Digests of files and of settings; they decide splits and names, so they never depend on the process."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

CHUNK = 1 << 20


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Hexadecimal digest of a file's bytes."""
    state = hashlib.new(algorithm)
    with open(path, "rb") as handle:
        while chunk := handle.read(CHUNK):
            state.update(chunk)
    return state.hexdigest()


def git_digest(path: Path) -> str:
    """What git calls a file of this content: the digest that hubs list small files with."""
    state = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with open(path, "rb") as handle:
        while chunk := handle.read(CHUNK):
            state.update(chunk)
    return state.hexdigest()


def settings_digest(settings: Any) -> str:
    """Digest of anything JSON can hold, as `"sha256:…"`."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def digest_number(text: str) -> int:
    """A number in [0, 2**64) that depends on the text alone (`hash()` differs between processes)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
