"""Whether the attempts of a job come further: a time limit that is too short for one saved state would repeat for ever.

An engine that submits jobs again (Snakemake's `retries`) counts their attempts. At its start an attempt notes how far
its points are. Two attempts in turn that came no further are enough: the point that would run next fails.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from blast.experiment.plan.paths import TRAINING_STATE, GridFolder
from blast.experiment.plan.point import Point
from blast.files import json_digest, write_json

# Attempts in turn that may end where they began: one may have met a lost node or a preemption in its first second.
IN_VAIN = 2
NO_PROGRESS = (
    "two attempts of its job ended early and saved nothing new: the time limit is too short for one saved state, or "
    "they were killed; give it more time (`--set-resources {rule}:runtime=MINUTES`){more}, then run again."
)
OFTEN = ", or lower `checkpoint_seconds`"


def _noted(file: Path) -> tuple[str, int]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        return str(values["reached"]), int(values["in_vain"])
    except (OSError, ValueError, LookupError, TypeError):
        return "", 0


def _reached(points: Sequence[Point], folder: GridFolder) -> str:
    """How far points are: a digest of which have records and of when their training states were written."""

    def mark(file: Path) -> list[int]:
        try:
            status = os.stat(file)
        except OSError:
            return []
        return [status.st_mtime_ns, status.st_size]

    return json_digest(
        [[point.id, mark(folder.record(point.id)), mark(folder.work(point.id) / TRAINING_STATE)] for point in points]
    )


def _file(first: Point, folder: GridFolder) -> Path:
    return folder.work(first.id) / "attempt.json"


def forget_attempts(points: Sequence[Point], folder: GridFolder) -> None:
    """Removes the note of a job whose points are all done: nothing starts it again."""
    if points:
        with suppress(OSError):
            _file(points[0], folder).unlink()


def no_progress(points: Sequence[Point], waiting: Sequence[Point], folder: GridFolder, attempt: int) -> str | None:
    """Notes where an attempt begins; returns why it should not: the attempts before it came no further.

    Args:
        points: The points of the job.
        waiting: Those that are left, in their order.
        folder: Folder of their grid.
        attempt: Its number; the first one never fails.
    """
    if not waiting:
        return None
    file = _file(points[0], folder)
    before, in_vain = _noted(file)
    reached = _reached(points, folder)
    # One that was sent back to the queue (by preemption) has the number of the attempt before.
    in_vain = in_vain + 1 if reached == before else 0
    failed = attempt > IN_VAIN and in_vain >= IN_VAIN
    write_json(file, {"reached": reached, "in_vain": 0 if failed else in_vain})
    if not failed:
        return None
    trained = waiting[0].stage == "train"
    return NO_PROGRESS.format(rule="point" if trained else "benchmark", more=OFTEN if trained else "")
