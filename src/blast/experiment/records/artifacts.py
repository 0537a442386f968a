"""The files beside a record that its `artifacts` name: where they are, and whether they are still what was recorded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from blast.checkpoint.manifest import is_checkpoint, read_manifest, weights_file
from blast.errors import BlastError
from blast.experiment.plan.paths import GridFolder
from blast.files import file_digest
from blast.untrusted import NotPlainFileError, check_plain, member

Record = Mapping[str, Any]


def artifact_files(folder: GridFolder, record: Record) -> Iterator[tuple[str, Path, str]]:
    """Name, file and recorded digest of each artifact of a point; of a checkpoint, the file with its weights.

    Raises:
        BlastError: if a path leads out of the folder of the point, or through a link.
    """
    for name, artifact in (record["result"].get("artifacts") or {}).items():
        place = member(folder.work(record["point"]["id"]), artifact["path"])
        yield name, weights_file(place) if place.is_dir() else place, artifact["digest"]


def plain_files(place: Path, remedy: str) -> Iterator[Path]:
    """The files of an artifact, which is one file or a folder.

    Raises:
        BlastError: if one is a link, or no ordinary file; ends with `remedy`.
    """
    for each in sorted(place.rglob("*")) if place.is_dir() else [place]:
        if each.is_dir() and not each.is_symlink():
            continue
        try:
            check_plain(each)
        except NotPlainFileError as error:
            raise BlastError(f"{each}: {error}; {remedy}") from error
        yield each


def artifact_fault(folder: GridFolder, record: Record, name: str) -> str | None:
    """What is wrong with an artifact of a point, such as `"its checkpoint is missing"`; None if it is whole.

    A record that names no such artifact has nothing wrong with it.
    """
    try:
        for other, file, digest in artifact_files(folder, record):
            if other != name:
                continue
            if not file.is_file():
                return f"its {name} is missing"
            if name == "checkpoint" and is_checkpoint(file.parent):
                read_manifest(file.parent)
            elif name == "checkpoint":
                return "its checkpoint lacks a file"
            if file_digest(file) != digest:
                return f"its {name} changed since the record was made"
    except BlastError:
        return f"its {name} is damaged"
    return None
