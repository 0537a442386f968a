"""Puts failed and damaged records aside, so that the next run makes them again and nothing has to read them."""

from __future__ import annotations

import itertools
from pathlib import Path

from blast.errors import BlastError
from blast.experiment.plan.paths import GridFolder
from blast.experiment.records.record import read_record
from blast.files import remove


def put_aside(folder: GridFolder, point: str) -> Path | None:
    """Moves the record of a point out of `records/`, and removes the language metrics that belong to it.

    Args:
        folder: Folder of the grid.
        point: Id of the point.

    Returns:
        Where the record is now: in `failed/` if it can be read, which shows its cause until there is a newer one; else
        in `damaged/`, which nothing reads. None if there was no record.
    """
    record = folder.record(point)
    remove(folder.language(point))
    if not (record.exists() or record.is_symlink()):
        return None
    try:
        read_record(record)
        place = folder.failed(point)
    except BlastError:
        place = _free(folder.damaged(point))
    place.parent.mkdir(parents=True, exist_ok=True)
    record.replace(place)
    return place


def put_damaged_aside(folder: GridFolder, point: str) -> Path | None:
    """Moves the record of a point to `damaged/` if it cannot be read; one that can be read stays.

    Returns:
        Where it is now; None if it stays, or there is none.
    """
    try:
        read_record(folder.record(point))
    except BlastError:
        return put_aside(folder, point)
    return None


def _free(file: Path) -> Path:
    """The file itself, or the first of its numbered names that is not taken: nothing that was put aside is lost."""
    names = itertools.chain([file], (file.with_name(f"{file.stem}.{number}.json") for number in itertools.count(2)))
    return next(name for name in names if not (name.exists() or name.is_symlink()))
