"""A record: what one point measured, written once and whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from blast.errors import BlastError
from blast.experiment.plan.point import Point
from blast.files import json_digest, read_json

FORMAT = 1


def record_digest(point: Point, result: dict[str, Any], status: str, cause: str | None = None) -> str:
    """Digest of what was asked and what was measured; time, place and machine are not in it."""
    settings = point.to_dict()
    del settings["grid"]
    return json_digest({"point": settings, "status": status, "cause": cause, "result": result})


def make_record(
    point: Point,
    *,
    status: str,
    result: dict[str, Any],
    run: dict[str, Any],
    cause: str | None = None,
    log: str | None = None,
) -> dict[str, Any]:
    """Puts a record together; `result` is what was measured, `run` where, when and with what."""
    return {
        "format": FORMAT,
        "point": point.to_dict(),
        "point_digest": point.digest,
        "record_digest": record_digest(point, result, status, cause),
        "status": status,
        "cause": cause,
        "log": log,
        "result": result,
        "run": run,
    }


def shortcoming(record: dict[str, Any]) -> str | None:
    """Why the next run should try a point again, in one sentence: it failed, or measured less than it was asked."""
    if record["status"] != "ok":
        return record["cause"]
    return record["result"].get("unfinished")


def read_record(file: Path) -> dict[str, Any]:
    """Reads a record and checks it against its own digest.

    Raises:
        BlastError: if it is missing, half-written, of another format, or was altered.
    """
    remedy = "delete it and run again: only this point is redone."
    record = read_json(file, "record", remedy)
    if not isinstance(record, dict) or not {"format", "point", "record_digest", "status", "result", "run"} <= set(
        record
    ):
        raise BlastError(f"{file}: this record is damaged or half-written; {remedy}")
    if record["format"] != FORMAT:
        raise BlastError(
            f"{file}: record format {record['format']} is not the format {FORMAT} of this version; {remedy}"
        )
    point = Point.from_dict(record["point"], source=str(file))
    if record_digest(point, record["result"], record["status"], record["cause"]) != record["record_digest"]:
        raise BlastError(f"{file}: the contents do not match the digest kept in it, so it was altered; {remedy}")
    return record
