"""A record: the JSON file with what one point measured, `records/<point>.json` in the folder of its grid.

`run.job` makes it with `make_record` and writes it with `write_record`; `read_record` checks it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from blast.errors import BlastError
from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point
from blast.files import json_digest, read_json, write_json

FORMAT = 1


def record_digest(point: Point, result: dict[str, Any], status: str, cause: str | None = None) -> str:
    """Digest of the point and of what it measured; time and machine are not part of it."""
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
    """Assembles a record: `result` is what was measured, `run` says where, when and with what."""
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
        "run_digest": json_digest(run),
    }


def write_record(folder: GridFolder, record: dict[str, Any]) -> None:
    """Writes a record to its place in the folder of its grid, atomically."""
    write_json(folder.record(record["point"]["id"]), record)


def retry_reason(record: dict[str, Any]) -> str | None:
    """Why the next run has to run a point again, in one sentence: it failed, or its time ran out. None if neither."""
    if record["status"] != "ok":
        return record["cause"]
    return record["result"].get("unfinished")


def read_record(file: Path) -> dict[str, Any]:
    """Reads a record and checks its digest.

    Raises:
        BlastError: if it is missing, half-written, altered or of another format.
    """
    remedy = "run again: only this point is redone."
    keys = ("format", "point", "point_digest", "record_digest", "status", "cause", "result", "run")
    record = read_json(file, "record", remedy, keys)
    if record["format"] != FORMAT:
        raise BlastError(
            f"{file}: record format {record['format']} is not the format {FORMAT} of this version; "
            f"delete it and {remedy}"
        )
    point = Point.from_dict(record["point"], source=str(file))
    if record_digest(point, record["result"], record["status"], record["cause"]) != record["record_digest"]:
        raise BlastError(f"{file}: its contents do not match its digest, so it was altered; delete it and {remedy}")
    return record
