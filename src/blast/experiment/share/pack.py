"""Writes a bundle: the records of a grid with their metrics, curves, masks and, if asked for, checkpoints."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from blast.errors import BlastError, unknown_name
from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.records.artifacts import artifact_files, plain_files
from blast.experiment.records.record import read_language, read_record
from blast.experiment.share.manifest import NAME, Content, Manifest
from blast.files import file_digest, replacing

CHECKPOINTS = ("none", "parents", "all")
CHECKPOINT = "checkpoint"
AGAIN = "run the workflow again, which mends the grid, and export then."


def pack(folder: GridFolder, ids: Sequence[str], checkpoints: str, out: Path | None) -> tuple[Path, Manifest]:
    """Writes points of a grid into one file. The same points give the same bytes.

    Args:
        folder: The grid.
        ids: Ids of points; empty for all that have a record.
        checkpoints: Whose weights come along: `none`, those of `parents` (all points that others are pruned from or
            taught by), or `all`.
        out: The file; None for `<grid>.<digest>.tar` in the current folder.

    Returns:
        The file and its manifest.

    Raises:
        BlastError: if there are no records, an id is unknown, or a file is damaged; nothing is written then.
    """
    known = sorted(file.stem for file in (folder.root / "records").glob("*.json"))
    if not known:
        raise BlastError(
            f"{folder.root}: holds no records; run the grid first, or give the folder of one that has run."
        )
    if unknown := [name for name in ids if name not in known]:
        raise unknown_name(f"point of {folder.root}", unknown[0], known)
    records = [read_record(folder.record(name)) for name in ids or known]
    needed = _needed(read_record(folder.record(name)) for name in known)
    places: dict[str, Path] = {}
    for record in records:
        with_weights = checkpoints == "all" or (checkpoints == "parents" and record["point"]["id"] in needed)
        places |= dict(_files(folder, record, with_weights))
    files = {path: Content(file_digest(file), file.stat().st_size) for path, file in places.items()}
    points = tuple(record["point"]["id"] for record in records)
    manifest = Manifest(records[0]["point"]["grid"], points, files)
    out = out or Path(f"{manifest.grid}.{manifest.digest.removeprefix('sha256:')[:12]}.tar")
    try:
        _write(out, manifest, places)
    except OSError as error:
        raise BlastError(
            f"{out}: cannot be written ({error.strerror}); free some space or give another --out."
        ) from error
    return out, manifest


def _needed(records: Iterable[dict[str, Any]]) -> set[str]:
    """The points whose checkpoints others start from or learn from."""
    return {name for record in records for name in Point.from_dict(record["point"]).needs}


def _files(folder: GridFolder, record: dict[str, Any], with_weights: bool) -> Iterator[tuple[str, Path]]:
    """The files of a point by their paths in the grid."""
    name = record["point"]["id"]
    yield f"records/{name}.json", folder.record(name)
    language = folder.language(name)
    if language.is_file() and read_language(language).get("record_digest") == record["record_digest"]:
        yield f"language/{name}.json", language
        if folder.item_scores(name).is_file():
            yield f"language/{name}.items.npz", folder.item_scores(name)
    for artifact, file, digest in artifact_files(folder, record):
        if (artifact == CHECKPOINT and not with_weights) or not file.exists():
            continue
        if file_digest(file) != digest:
            raise BlastError(f"{file}: this file ({artifact}) is not the one its record names; {AGAIN}")
        place = folder.work(name) / record["result"]["artifacts"][artifact]["path"]
        for each in plain_files(place, AGAIN):
            yield each.relative_to(folder.root).as_posix(), each


def _write(out: Path, manifest: Manifest, places: dict[str, Path]) -> None:
    sources = {content.name: places[path] for path, content in manifest.files.items()}
    with replacing(out) as temporary, tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
        text = (json.dumps(manifest.to_dict(), indent=1, ensure_ascii=False) + "\n").encode()
        tar.addfile(_header(NAME, len(text)), io.BytesIO(text))
        for name, content in sorted(manifest.contents.items()):
            with sources[name].open("rb") as stream:
                tar.addfile(_header(name, content.size), stream)


def _header(name: str, size: int) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.size, made.mode = size, 0o644
    return made
