"""Atomic writes, locks and digests: the only place of each.

Digests decide splits and names, so they never depend on the process.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from blast.errors import BlastError

CHUNK = 1 << 20
LOCKS = "BLAST_LOCKS"
# What the system says where a filesystem has no locks.
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Digest of a file's bytes, `"<algorithm>:<hexadecimal>"`.

    Args:
        path: The file.
        algorithm: `"git"`, the name that git gives a file of this content, or a name that `hashlib` knows.
    """
    if algorithm == "git":
        state = hashlib.sha1(b"blob %d\0" % Path(path).stat().st_size, usedforsecurity=False)
    else:
        state = hashlib.new(algorithm)
    with open(path, "rb") as handle:
        while chunk := handle.read(CHUNK):
            state.update(chunk)
    return f"{algorithm}:{state.hexdigest()}"


def folder_digest(folder: Path) -> str:
    """Digest of the names and the bytes of the files in a folder, `"sha256:…"`; folders in it are left out."""
    state = hashlib.sha256()
    for file in sorted(Path(folder).iterdir()):
        if file.is_file():
            state.update(file.name.encode() + b"\0" + file.read_bytes())
    return f"sha256:{state.hexdigest()}"


def text_digest(text: str) -> str:
    """Digest of a text in UTF-8, `"sha256:…"`."""
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def canonical_json(value: Any, escaped: bool = False) -> str:
    """A JSON value as the one text that digests are taken of.

    Args:
        value: Anything that JSON can hold.
        escaped: Whether other characters than ASCII are escaped.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=escaped)


def json_digest(value: Any, escaped: bool = False) -> str:
    """Digest of a JSON value, `"sha256:…"`.

    Args:
        value: Anything that JSON can hold.
        escaped: True for datasets, weights and `SparsifyConfig`, whose stored digests are of escaped text. Points and
            records are digested without escapes.
    """
    return text_digest(canonical_json(value, escaped))


def digest_number(text: str) -> int:
    """A number in [0, 2**64) that depends on the text alone (`hash()` differs between processes)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


@contextmanager
def replacing(file: Path, alone: bool = False) -> Iterator[Path]:
    """A path to write to, which takes the place of `file` when the block ends without an error.

    A reader sees all of the new file or all of the old one, also after a crash of the machine.

    Args:
        file: The file to write; its folder is made.
        alone: True where a lock keeps other writers away. The temporary file then has a fixed name, so that killed
            writes of large files leave one behind, not many.

    Raises:
        OSError: if the file cannot be written; the temporary file is removed.
    """
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.tmp" if alone else f".{file.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(file)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def remove(path: Path) -> None:
    """Removes a file, a folder or a link; what a link points to stays."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def write_atomically(file: Path, content: str | bytes, remedy: str = "run again: finished points are kept") -> None:
    """Writes a file so that a reader sees either all of it or the file before.

    Raises:
        BlastError: if the disk is full or the path cannot be written; the message ends with `remedy`.
    """
    try:
        with replacing(file) as temporary:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise BlastError(f"{file}: cannot be written ({error.strerror}); {_mended(error)}, then {remedy}.") from error


def _mended(error: OSError) -> str:
    """What to do about a path that cannot be written."""
    if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG):
        return "give another path"
    return "free some space or change the permissions"


def write_json(file: Path, value: Any) -> None:
    """Writes JSON atomically, readable, with a final newline."""
    write_atomically(file, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(file: Path, what: str, remedy: str, keys: Iterable[str] = ()) -> Any:
    """Reads JSON.

    Args:
        file: The file.
        what: What it should be.
        remedy: What makes it anew, for the errors.
        keys: Keys that it has to hold; with any, it has to be a mapping.

    Raises:
        BlastError: if the file is missing, half-written, or lacks a key.
    """
    damaged = f"{file}: this {what} is damaged or half-written; delete it and {remedy}"
    try:
        values = json.loads(Path(file).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BlastError(f"{file}: this {what} does not exist; {remedy}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise BlastError(damaged) from error
    needed = set(keys)
    if needed and not (isinstance(values, dict) and needed <= set(values)):
        raise BlastError(damaged)
    return values


class FileLock:
    """A lock on a file, made if it is missing; the kernel releases it when its holder dies.

    `with lock:` waits for it. A filesystem may have no locks (Lustre without `-o flock`, NFS without a lock service):
    it is refused, unless `BLAST_LOCKS=off` says to go on without.

    Args:
        file: The file.
    """

    def __init__(self, file: Path) -> None:
        import filelock  # 50 ms, and a plan of a grid takes no lock

        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Not the lock that stands in for it: a file that a killed process leaves behind.
            self._lock = filelock.FileLock(file, fallback_to_soft=False)
        except TypeError:
            self._lock = filelock.FileLock(file)

    def acquire(self, blocking: bool = True) -> None:
        """Takes the lock.

        Args:
            blocking: Whether to wait while another process, or another lock of this one, holds it.

        Raises:
            TimeoutError: if another holds it, without `blocking`.
            BlastError: if the filesystem has no locks.
        """
        try:
            self._lock.acquire(blocking=blocking)
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in NO_LOCKS:
                raise
            if os.environ.get(LOCKS) != "off":
                raise BlastError(
                    f"{self.file.parent}: this filesystem has no locks ({error}); mount it with them (Lustre: "
                    f"`-o flock`, NFS: its lock service), or set {LOCKS}=off and start no grid twice at a time."
                ) from error

    def release(self) -> None:
        """Gives the lock back."""
        self._lock.release()

    def __enter__(self) -> FileLock:
        self.acquire()
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock of `path`, a file `<path>.lock` beside it; others wait."""
    with FileLock(path.with_name(path.name + ".lock")):
        yield
