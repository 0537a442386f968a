"""Replaces the folder of a checkpoint at once: a reader finds the old one or the new one."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from blast.checkpoint.manifest import is_checkpoint, own_files
from blast.errors import BlastError, check_argument
from blast.files import FileLock

# How often the new folder is moved into place where other processes save to the same place.
ATTEMPTS = 100


def folder_path(folder: str | Path) -> Path:
    """The folder of a checkpoint as an absolute path.

    Raises:
        BlastError: if it is no path, or empty.
    """
    check_argument("the folder", folder, (str, os.PathLike), "its path, for instance 'my-sparse-model'")
    if not os.fspath(folder):
        raise BlastError("the path of the folder is empty; give its path, for instance 'my-sparse-model'.")
    return Path(folder).resolve()


@contextmanager
def replaced_folder(folder: Path, kept: Collection[str] = ()) -> Iterator[Path]:
    """An empty folder to write to. It replaces `folder` when the context ends without an error.

    Other files of a replaced checkpoint are copied. If the process is killed, `folder` is the old or the new one, or
    missing for an instant. It is never half-written, but a hidden folder can stay beside it. If several processes save
    to one folder, the last one replaces the others.

    Args:
        folder: The folder to write.
        kept: Names of files that belong to a replaced checkpoint, but are copied too.

    Raises:
        BlastError: if `folder` exists and is neither empty nor a checkpoint, or if it cannot be written (a full disk,
            missing permissions). Then it does not change.
    """
    try:
        if folder.exists() and not (folder.is_dir() and (is_checkpoint(folder) or not any(folder.iterdir()))):
            raise BlastError(
                f"{folder} contains other files than a blast checkpoint; empty it, or choose another folder."
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:12]}"
        fresh, old = aside.with_name(aside.name + ".new"), aside.with_name(aside.name + ".old")
        fresh.mkdir()
        try:
            yield fresh
            with _one_at_a_time(folder):
                try:
                    _copy_others(folder, fresh, kept)
                    for path in (*(file for file in fresh.iterdir() if file.is_file()), fresh):
                        _to_disk(path)
                    _swap(folder, fresh, old)
                finally:
                    if not folder.exists() and old.exists():
                        old.rename(folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise BlastError(
            f"{folder} cannot be written ({reason}), and what was there is unchanged; "
            "free some space or change the permissions, then save again."
        ) from error


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Keeps the other threads and processes of this user on this machine from replacing the same folder meanwhile."""
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:24]
    user = os.getuid() if hasattr(os, "getuid") else ""
    with ExitStack() as stack:
        # Where no lock can be made, `_swap` tries again as often as others are faster.
        with suppress(OSError, NotImplementedError):
            stack.enter_context(FileLock(Path(tempfile.gettempdir(), f"blast-saves-{user}", f"{name}.lock")))
        yield


def _copy_others(folder: Path, fresh: Path, kept: Collection[str]) -> None:
    if not folder.exists():
        return
    replaced = own_files(folder) - set(kept)
    for other in folder.iterdir():
        if other.name not in replaced and not (fresh / other.name).exists():
            # Links stay links: what they point to is not copied.
            if other.is_dir() and not other.is_symlink():
                shutil.copytree(other, fresh / other.name, symlinks=True)
            else:
                shutil.copy2(other, fresh / other.name, follow_symlinks=False)


def _swap(folder: Path, fresh: Path, old: Path) -> None:
    for attempt in range(ATTEMPTS):
        try:
            if folder.exists():
                if old.exists():  # of an attempt before, in which another process was faster
                    shutil.rmtree(old)
                folder.rename(old)
            fresh.rename(folder)
            return
        except OSError:
            if attempt + 1 == ATTEMPTS:
                raise


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some file systems cannot do it for folders
        pass
    finally:
        os.close(handle)
