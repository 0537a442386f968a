"""Imports the records that another machine wrote (`blast import`)."""

from __future__ import annotations

import shutil
from pathlib import Path

from blast.checkpoint.manifest import weights_file
from blast.errors import BlastError
from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.records.fingerprint import fingerprint
from blast.experiment.records.record import read_record, write_record
from blast.files import file_digest


def _check_artifacts(source: GridFolder, record: dict) -> None:
    """Compares each artifact that was copied with its digest in the record; an artifact may be missing."""
    for name, artifact in record["result"].get("artifacts", {}).items():
        place = source.work(record["point"]["id"]) / artifact["path"]
        file = weights_file(place) if place.is_dir() else place
        if file.is_file() and file_digest(file) != artifact["digest"]:
            raise BlastError(
                f"{file}: this file ({name}) is not the one its record names; copy the folder of the run again."
            )


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


def import_records(source: Path, folder: GridFolder) -> list[str]:
    """Copies records, and the artifacts beside them, from the grid folder of another machine.

    Args:
        source: A folder laid out like `results/<grid>`: `records/`, and `points/` as far as it came along.
        folder: The grid that the records are copied to.

    Returns:
        Ids of the imported points.

    Raises:
        BlastError: if there are no records, or one does not match its digest; then none is imported.
    """
    source = Path(source)
    files = sorted((source / "records").glob("*.json"))
    if not files:
        raise BlastError(f"{source}: holds no records; give the folder that `blast job … --out` wrote to.")
    records = [read_record(file) for file in files]
    for record in records:
        _check_artifacts(GridFolder(source), record)
    for record in records:
        name = record["point"]["id"]
        if (work := GridFolder(source).work(name)).is_dir():
            shutil.copytree(work, folder.work(name), dirs_exist_ok=True)
        write_record(folder, record)
    return [record["point"]["id"] for record in records]
