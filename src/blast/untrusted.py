"""Reading files that came from elsewhere: no link is followed, sizes are bounded, and names stay in their folder."""

from __future__ import annotations

import gzip
import io
import json
import os
import stat
from pathlib import Path, PurePosixPath
from typing import IO, Any

from blast.errors import BlastError, one_line
from blast.files import canonical_json

MIB = 1 << 20
# What is nested less deep can be written.
MANY_BRACKETS = 200
# Text and images shrink to a twentieth at most.
LARGEST_RATIO = 200


class NotPlainFileError(ValueError):
    """A path that is no ordinary file of a sensible size; the message says what it is instead."""


def read_bytes(file: Path, most: int) -> bytes:
    """The content of an ordinary file.

    Args:
        file: The file. A link is not followed, and a pipe or a device is not opened.
        most: Largest size, bytes.

    Raises:
        FileNotFoundError: if it is missing.
        NotPlainFileError: if it is something else than a file, or too large.
        OSError: if it cannot be read.
    """
    check_plain(file)
    # Checked again once it is open: the name may stand for something else by now.
    descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    with open(descriptor, "rb") as stream:
        found = os.fstat(descriptor)
        _check_mode(found.st_mode)
        content = stream.read(most + 1) if found.st_size <= most else b""
    if max(found.st_size, len(content)) > most:
        raise NotPlainFileError(f"is larger than the {most >> 20} MiB that are read")
    return content


def check_plain(file: Path) -> None:
    """Refuses a link, a folder, a pipe or a device.

    Raises:
        FileNotFoundError: if there is nothing.
        NotPlainFileError: if it is something else than an ordinary file.
    """
    _check_mode(os.lstat(file).st_mode)


def _check_mode(mode: int) -> None:
    if stat.S_ISLNK(mode):
        raise NotPlainFileError("is a link, which is not followed")
    if not stat.S_ISREG(mode):
        raise NotPlainFileError(
            "is a folder, not a file" if stat.S_ISDIR(mode) else "is a pipe or a device, not a file"
        )


def copy_bounded(source: IO[bytes], target: IO[bytes], packed: int) -> None:
    """Copies what is unpacked from an archive or a compressed file, as far as its size makes sense.

    Args:
        source: What is unpacked.
        target: Where it goes.
        packed: Size of the packed file, bytes; more than `LARGEST_RATIO` times of it is refused.

    Raises:
        ValueError: if there is more. What was copied until then has to be removed.
    """
    left = packed * LARGEST_RATIO + MIB
    while chunk := source.read(MIB):
        left -= len(chunk)
        if left < 0:
            raise ValueError(f"it unpacks to more than {LARGEST_RATIO} times its size")
        target.write(chunk)


def gunzip(content: bytes, most: int) -> bytes:
    """The content of gzip data.

    Args:
        content: The packed bytes.
        most: Largest size, bytes.

    Raises:
        ValueError: if there is more.
        OSError: if the data are damaged; also EOFError and zlib.error.
    """
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as stream:
        found = stream.read(most + 1)
    if len(found) > most:
        raise ValueError(f"it unpacks to more than {most} bytes")
    return found


def parse_json(content: bytes) -> Any:
    """JSON that can be written again as it is.

    Raises:
        ValueError: if it is no JSON in UTF-8, or holds half a character (a lone surrogate), which no file can hold.
        RecursionError: if it is nested too deep.
    """
    value = json.loads(content.decode("utf-8-sig"))
    # Half a character can only come from an escape, and what is nested deep has many brackets. Writing takes long.
    if b"\\u" in content or content.count(b"[") + content.count(b"{") > MANY_BRACKETS:
        canonical_json(value).encode()
    return value


def member(folder: Path, name: Any) -> Path:
    """A file or folder that is named by what came from elsewhere, if it lies inside `folder`.

    Args:
        folder: The folder. It may be reached through links; nothing below it may be one.
        name: A relative path with `/` between its parts.

    Raises:
        BlastError: if the name is no relative path, leads out of the folder, or a part of it is a link.
    """
    if not is_inner_path(name):
        raise BlastError(f"{folder}: the name {one_line(name)[:120]} leads out of this folder; copy the folder again.")
    place = Path(folder)
    for part in PurePosixPath(name).parts:
        place /= part
        if place.is_symlink():
            raise BlastError(f"{place}: is a link, which is not followed; put the file itself in its place.")
    return place


def is_inner_path(name: Any) -> bool:
    """Whether a value is a relative path of plain parts: no `..`, no root, no drive, no control character."""
    if not isinstance(name, str) or not name or len(name) > 1000 or name.startswith("/"):
        return False
    if any(ord(character) < 32 for character in name) or set(name) & {"\\", ":"}:
        return False
    return not {"", ".", ".."} & set(name.split("/"))
