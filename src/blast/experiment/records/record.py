"""A record: the JSON file with what one point measured, `records/<point>.json` in the folder of its grid.

`run.job` makes it with `make_record` and writes it with `write_record`. `read_record` reads one that may come from
anywhere; nothing else opens a record.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from blast.errors import BlastError
from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.plan.point_parts import check_parts
from blast.experiment.records.checked import Checked
from blast.experiment.records.record_schema import check_language, check_record
from blast.files import canonical_json, json_digest, text_digest, write_json
from blast.untrusted import MIB, NotPlainFileError, parse_json, read_bytes

FORMAT = 1
# A record of the largest sweep of kernels has 6 MB.
LARGEST = 64 * MIB
REMEDY = "delete it and run again: only this point is redone."


def record_digest(point: Point, result: dict[str, Any], status: str, cause: str | None = None) -> str:
    """Digest of the point and of what it measured; time and machine are not part of it."""
    # As `json_digest` takes it of a mapping with these keys; the text of the point is made once.
    parts = {"cause": canonical_json(cause), "point": point.text, "result": canonical_json(result)}
    parts["status"] = canonical_json(status)
    return text_digest("{" + ",".join(f'"{key}":{text}' for key, text in parts.items()) + "}")


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


def read_record(
    file: Path, named: str | None = None, planned: Point | None = None, checked: Checked | None = None
) -> dict[str, Any]:
    """Reads a record that may come from anywhere, and checks all of it.

    Its id is a file name and the name of the file, its parts have the types that their readers expect, and its digest
    is that of its content. A link is not followed, and a file of more than `LARGEST` bytes is not read.

    Args:
        file: The file.
        named: The id that it has to have; None for the name of the file.
        planned: A point whose settings the record may have: where it does, they are not checked again, which takes most
            of the time.
        checked: The bytes that were found good before; the record is added where it is.

    Raises:
        BlastError: if it is missing, half-written, altered or of another format; one sentence with what to do.
    """
    return record_of(read_content(file), file, named, planned, checked)


def read_content(file: Path) -> bytes:
    """The bytes of a record, nothing of them checked.

    Raises:
        BlastError: if it is missing, no ordinary file or too large; one sentence with what to do.
    """
    return _content(file, "record", "run again: only this point is redone.", REMEDY)


def record_of(
    content: bytes, file: Path, named: str | None = None, planned: Point | None = None, checked: Checked | None = None
) -> dict[str, Any]:
    """The record in some bytes, checked as `read_record` does.

    Args:
        content: The bytes.
        file: Where they were read; its arguments, and the others, are those of `read_record`.
        named: See there.
        planned: See there.
        checked: See there.

    Raises:
        BlastError: as `read_record` does.
    """
    remedy, record = REMEDY, _parse(content, file, "record", REMEDY)
    if checked is not None and planned is not None and content in checked and record["point"] == planned.values:
        if planned.id != (Path(file).stem if named is None else named):
            raise BlastError(f"{file}: this is the record of '{planned.id}', under another name; {remedy}")
        return record
    if record.get("format", FORMAT) != FORMAT:
        raise BlastError(
            f"{file}: record format {str(record['format'])[:40]} is not the format {FORMAT} of this version; {remedy}"
        )
    try:
        check_record(record)
        if planned is not None and record["point"] == planned.values:
            point = planned
        else:
            point = Point.from_dict(record["point"])
            check_parts(point.to_dict())
    except BlastError as error:
        problem = str(error).removesuffix(".")
        raise BlastError(f"{file}: this record is damaged ({problem}); {remedy}") from error
    if record_digest(point, record["result"], record["status"], record["cause"]) != record["record_digest"]:
        raise BlastError(f"{file}: its contents do not match its digest, so it was altered; {remedy}")
    if record["point_digest"] != point.digest:
        raise BlastError(f"{file}: the digest of its point is that of another point; {remedy}")
    if point.id != (Path(file).stem if named is None else named):
        raise BlastError(f"{file}: this is the record of '{point.id}', under another name; {remedy}")
    if checked is not None:
        checked.add(content)
    # With every key, also those that came after the record.
    return record if point is planned else record | {"point": point.to_dict()}


def read_language(file: Path) -> dict[str, Any]:
    """Reads the metrics that lm-eval computed for a point, `language/<id>.json`, as `read_record` reads a record.

    Raises:
        BlastError: if the file is missing or damaged; one sentence with what to do.
    """
    again = "run again: only the metrics are computed again."
    what, remedy = "file of language metrics", f"delete it and {again}"
    language = _parse(_content(file, what, again, remedy), file, what, remedy)
    try:
        check_language(language)
    except BlastError as error:
        problem = str(error).removesuffix(".")
        raise BlastError(f"{file}: this {what} is damaged ({problem}); {remedy}") from error
    return language


def _content(file: Path, what: str, missing: str, remedy: str) -> bytes:
    try:
        return read_bytes(file, LARGEST)
    except FileNotFoundError as error:
        raise BlastError(f"{file}: this {what} does not exist; {missing}") from error
    except NotPlainFileError as error:
        raise BlastError(f"{file}: {error}; {remedy}") from error
    except OSError as error:
        raise BlastError(f"{file}: this {what} cannot be read ({error.strerror}); {remedy}") from error


def _parse(content: bytes, file: Path, what: str, remedy: str) -> dict[str, Any]:
    """The mapping in a JSON file."""
    try:
        values = parse_json(content)
        if not isinstance(values, dict):
            raise ValueError("no mapping")
    except (ValueError, RecursionError) as error:
        raise BlastError(f"{file}: this {what} is damaged or half-written; {remedy}") from error
    return values
