"""What is left to do for a point, by the contents of its record: nothing, its evaluation, or all of it.

The planner of the workflow and the job ask here, so that they agree. Nothing is written, and no time of a file counts.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, NamedTuple

from blast.checkpoint.manifest import weights_file
from blast.errors import BlastError
from blast.experiment.plan.paths import TRAINED, GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.records.checked import Checked
from blast.experiment.records.fingerprint import fingerprint, training_fingerprint
from blast.experiment.records.record import read_content, read_record, record_of, retry_reason
from blast.files import json_digest


class Left(Enum):
    """What is left to do for a point."""

    NOTHING = "nothing"
    EVALUATION = "evaluation"
    ALL = "all"


class State(NamedTuple):
    """What is left to do for a point, and why.

    Attributes:
        left: What is left.
        reason: Why, in short; empty if nothing is left.
        record: The record that shows it; None if it does not count, or was known to show it and not read.
        found: The record that is there, if it was read, whether it counts or not.
        record_digest: Digest of the record that shows that nothing is left; None if something is.
    """

    left: Left
    reason: str
    record: dict[str, Any] | None
    found: dict[str, Any] | None = None
    record_digest: str | None = None


def state_of(point: Point, folder: GridFolder, checked: Checked | None = None) -> State:
    """What is left to do for a point.

    Its record has to be whole, and of these settings and this code. If only settings or code of the evaluation differ
    and its checkpoint is kept, its evaluation is left. Records from before there was a `training_fingerprint` count by
    their `fingerprint`, which covers both.

    Args:
        point: As it is planned now.
        folder: Folder of its grid.
        checked: Records that were found good before; one that is known to show that nothing is left is not read.
    """
    file, why = folder.record(point.id), "it has no record"
    content, record = b"", None
    if file.is_file():
        try:
            content = read_content(file)
            if checked and (digest := checked.done(content, _named(point))):
                return State(Left.NOTHING, "", None, record_digest=digest)
            record = record_of(content, file, planned=point, checked=checked)
        except BlastError:
            return State(Left.ALL, "its record is damaged", None)
        # `record_digest` covers what was measured, without time and machine; older records have no other digest.
        if "run_digest" in record and record["run_digest"] != json_digest(record["run"]):
            return State(Left.ALL, "its record was changed by hand", None, record)
        why = retry_reason(record)
    found = record
    if why is not None:
        record = _trained_before(folder, point, record)
        if record is None:
            return State(Left.ALL, why, None, found)
    same_settings = record["point_digest"] == point.digest
    same_code = record["run"].get("fingerprint") == fingerprint(point)
    if same_settings and same_code and why is None:
        if checked:
            checked.add_done(content, _named(point), record["record_digest"])
        return State(Left.NOTHING, "", record, found, record["record_digest"])
    what = "its code" if same_settings else "its settings"
    if point.stage != "train" or not (same_settings or _same_training(record, point)):
        return State(Left.ALL, f"{what} changed", None, found)
    if not same_code and record["run"].get("training_fingerprint") != training_fingerprint(point):
        return State(Left.ALL, "its code changed", None, found)
    if not has_checkpoint(record, folder):
        missing = f"{what} of the evaluation changed, and its checkpoint is not here"
        return State(Left.ALL, missing, None, found)
    return State(Left.EVALUATION, why or f"{what} of the evaluation changed", record, found or record)


def _named(point: Point) -> str:
    """What a record has to be of, to show that nothing of a point is left."""
    return f"{point.id} {point.digest} {fingerprint(point)}"


def _same_training(record: dict[str, Any], point: Point) -> bool:
    return Point.from_dict(record["point"]).training_digest == point.training_digest


def _trained_before(folder: GridFolder, point: Point, failed: dict[str, Any] | None) -> dict[str, Any] | None:
    """The record of the training of a point whose evaluation failed when it was made again; None otherwise."""
    kept = folder.work(point.id) / TRAINED
    if not kept.is_file() or (failed is None and not folder.failed(point.id).is_file()):
        return None
    try:
        record = read_record(kept, point.id)
    except BlastError:
        return None
    return record if retry_reason(record) is None else None


def has_checkpoint(record: dict[str, Any], folder: GridFolder) -> bool:
    """Whether the weights of a point are here; the job compares their digest before it uses them."""
    named = (record["result"].get("artifacts") or {}).get("checkpoint")
    return bool(named) and weights_file(folder.work(record["point"]["id"]) / named["path"]).is_file()
