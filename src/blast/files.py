"""Digests of files and of settings; they decide splits and names, so they never depend on the process."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from blast.errors import BlastError

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


def write_atomically(file: Path, text: str) -> None:
    """Writes a text file so that a reader sees either all of it or the file before.

    Raises:
        BlastError: if the disk is full or the folder cannot be written.
    """
    file = Path(file)
    aside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(file)
    except OSError as error:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise BlastError(
            f"{file}: cannot be written ({error.strerror}); free some space or mend the rights, then run again: "
            "finished points are kept."
        ) from error


def write_json(file: Path, value: Any) -> None:
    """Writes JSON atomically, readable, with a final newline."""
    write_atomically(file, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(file: Path, what: str, remedy: str) -> Any:
    """Reads JSON.

    Raises:
        BlastError: if the file is missing or half-written: one sentence with `what` it should be and the `remedy`.
    """
    try:
        return json.loads(Path(file).read_text())
    except FileNotFoundError as error:
        raise BlastError(f"{file}: this {what} does not exist; {remedy}") from error
    except (OSError, ValueError) as error:
        raise BlastError(f"{file}: this {what} is damaged or half-written; {remedy}") from error


def canonical_json(value: Any) -> str:
    """The one spelling of a JSON value that digests are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any) -> str:
    """`sha256:…` of a JSON value."""
    return "sha256:" + hashlib.sha256(canonical_json(value).encode()).hexdigest()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock of `path` (a file `<path>.lock` beside it); others wait.

    The kernel lets go of the lock when its holder dies, so none is ever left behind by a crash.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(path.name + ".lock"), "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
