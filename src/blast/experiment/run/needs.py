"""Parents and teachers whose checkpoints points read: they have to be there and whole before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from blast.errors import BlastError
from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point, read_plan
from blast.experiment.records.artifacts import artifact_fault
from blast.experiment.records.record import read_record


def needs_to_run_again(waiting: Sequence[Point], folder: GridFolder) -> list[tuple[Point, str]]:
    """The points that others need and whose record or checkpoint is damaged, with what is wrong.

    Args:
        waiting: Points that will run now.
        folder: Folder of their grid.

    Raises:
        BlastError: if a needed point has not run, or its record is damaged and does not tell how it was made.
    """
    ids, found = {point.id for point in waiting}, []
    for point in waiting:
        for other in point.needs:
            if other not in ids:
                ids.add(other)
                found += _of_one(point, other, folder)
    return found


def _of_one(point: Point, other: str, folder: GridFolder) -> list[tuple[Point, str]]:
    file = folder.record(other)
    if not file.is_file():
        raise BlastError(
            f"the point '{point.id}' needs the checkpoint of '{other}', which has no record in "
            f"{folder.root}; give that point too."
        )
    try:
        record = read_record(file)
    except BlastError as error:
        with suppress(BlastError, KeyError):
            return [(read_plan(folder.plan)[other], "its record is damaged")]
        raise BlastError(f"{error.args[0].removesuffix('.')}, or give the point '{other}' too.") from error
    # Of a failed one there is no checkpoint; what needs it passes its cause on.
    fault = artifact_fault(folder, record, "checkpoint") if record["status"] == "ok" else None
    return [(Point.from_dict(record["point"]), fault)] if fault else []
