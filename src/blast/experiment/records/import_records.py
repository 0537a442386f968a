"""Imports the records that another machine wrote (`blast import`). Nothing of that folder is trusted."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blast.errors import BlastError
from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.records.artifacts import artifact_files, plain_files
from blast.experiment.records.fingerprint import fingerprint
from blast.experiment.records.put_aside import put_damaged_aside
from blast.experiment.records.record import read_record, write_record
from blast.files import file_digest, replacing
from blast.untrusted import member

AGAIN = "copy the folder of the run again."


@dataclass
class Imported:
    """What an import did; the lists hold ids of points.

    Attributes:
        ids: All points whose records are here now.
        known: Of these, the ones whose record was here before; it stays as it was.
        replaced: Of these, the ones that had another record, which is now in `replaced/`.
    """

    ids: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)


def import_records(source: Path, folder: GridFolder, replace: bool = False) -> Imported:
    """Copies records, and the artifacts beside them, from the grid folder of another machine.

    Of the folder of a point, only what its record names is copied. No link is followed.

    Args:
        source: A folder laid out like `results/<grid>`: `records/`, and `points/` as far as it came along.
        folder: The grid that the records are copied to.
        replace: Whether a record may take the place of another one of the same point, which is moved to `replaced/`.

    Raises:
        BlastError: if there are no records, one of them or an artifact does not match its digest, a path leads out of
            the folder, the disk is too small, or the grid has another record of a point. Then none is imported.
    """
    source = Path(source)
    files = sorted(member(source, "records").glob("*.json"))
    if not files:
        raise BlastError(f"{source}: holds no records; give the folder that `blast job … --out` wrote to.")
    records = [read_record(file) for file in files]
    copies = [list(_copies(GridFolder(source), record)) for record in records]
    _check_space(folder.root, sum(file.stat().st_size for files in copies for file, _ in files))
    for record in records:
        _check_digests(GridFolder(source), record)
    imported = Imported()
    for record in records:
        name = record["point"]["id"]
        imported.ids.append(name)
        if (known := _known(folder, name)) is None:
            continue
        if known["record_digest"] == record["record_digest"]:
            imported.known.append(name)
        else:
            imported.replaced.append(name)
    if imported.replaced and not replace:
        more = f" and {len(imported.replaced) - 1} others" if len(imported.replaced) > 1 else ""
        raise BlastError(
            f"{folder.root}: has another record of '{imported.replaced[0]}'{more} than {source}; nothing was imported: "
            "give another --grid-dir, or --replace, which keeps the old ones in the folder 'replaced'."
        )
    for record, of_record in zip(records, copies, strict=True):
        name = record["point"]["id"]
        put_damaged_aside(folder, name)
        if name in imported.replaced:
            _keep_replaced(folder, name)
        for file, place in of_record:
            _copy(file, folder.work(name) / place)
        if name not in imported.known:
            write_record(folder, record)
    return imported


def _known(folder: GridFolder, name: str) -> dict[str, Any] | None:
    """The record of a point that the grid has; a damaged one counts as none."""
    try:
        return read_record(folder.record(name))
    except BlastError:
        return None


def _copies(source: GridFolder, record: dict[str, Any]) -> Iterator[tuple[Path, str]]:
    """The files of a point that came along, and where they belong in the folder of the point.

    Raises:
        BlastError: if one is no ordinary file.
    """
    work = member(source.root, f"points/{record['point']['id']}")
    for name, file, _ in artifact_files(source, record):
        if not (file.exists() or file.is_symlink()):
            continue
        place = work / record["result"]["artifacts"][name]["path"]
        for each in plain_files(place, AGAIN):
            yield each, each.relative_to(work).as_posix()


def _check_digests(source: GridFolder, record: dict[str, Any]) -> None:
    """Compares each artifact that came along with its digest in the record."""
    for name, file, digest in artifact_files(source, record):
        if file.is_file() and file_digest(file) != digest:
            raise BlastError(f"{file}: this file ({name}) is not the one its record names; {AGAIN}")


def _check_space(root: Path, size: int) -> None:
    there = next(place for place in (root, *root.absolute().parents) if place.exists())
    if size > (free := shutil.disk_usage(there).free):
        raise BlastError(
            f"{root}: the import needs {size:,} bytes and the disk has {free:,}; free some space, or leave out the "
            "folders 'checkpoint' of the points."
        )


def _copy(file: Path, place: Path) -> None:
    with replacing(place) as temporary:
        shutil.copyfile(file, temporary, follow_symlinks=False)


def _keep_replaced(folder: GridFolder, name: str) -> None:
    """Moves a record to the first free name in `replaced/`."""
    for number in itertools.count(1):
        place = folder.replaced(name, number)
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(folder.record(name), place)
            return


def without_masks(folder: GridFolder, ids: list[str]) -> list[str]:
    """The points among `ids` whose record names a file of masks that is missing here."""
    found = []
    for name in ids:
        record = read_record(folder.record(name))
        named = (record["result"].get("artifacts") or {}).get("masks")
        if named and not (folder.work(name) / named["path"]).is_file():
            found.append(name)
    return found


def of_other_code(folder: GridFolder, ids: list[str]) -> list[str]:
    """The points among `ids` that other code ran: the workflow would run them again."""
    records = {name: read_record(folder.record(name)) for name in ids}
    return [
        name
        for name, record in records.items()
        if record["run"].get("fingerprint") != fingerprint(Point.from_dict(record["point"]))
    ]
