"""Whether everything of a grid is still what was recorded: records, their files, metrics, views, requests, data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from blast.download.cache import is_whole
from blast.errors import BlastError
from blast.evaluation.requests import read_requests
from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import read_plan
from blast.experiment.records.artifacts import artifact_fault, artifact_files
from blast.experiment.records.language import language_digest, read_made
from blast.experiment.records.record import read_language, read_record
from blast.files import file_digest, json_digest

AGAIN = "run again: only this point is redone."


class Checked(NamedTuple):
    """One thing that was looked at.

    Attributes:
        kind: What it is, such as `record`.
        file: Where it is.
        fault: What is wrong with it; None if it is whole.
    """

    kind: str
    file: Path
    fault: str | None


def verify(folder: GridFolder, drawn: Path | None = None) -> Iterator[Checked]:
    """Reads everything of a grid and compares it with its digests; changes nothing.

    Args:
        folder: Folder of the grid.
        drawn: The folder of its pictures and tables; None leaves them out.
    """
    if folder.plan.exists():
        yield Checked("plan", folder.plan, _sentence(read_plan, folder.plan))
    for file in sorted((folder.root / "records").glob("*.json")):
        yield from _of_record(file, folder)
    for file in sorted((folder.root / "language").glob("*.json")):
        yield Checked("lm-eval metrics", file, _fault_of_language(file))
    for file in sorted((folder.root / "requests").glob("*.jsonl.gz")):
        yield Checked("requests", file, _sentence(read_requests, file))
    for file in sorted((folder.root / "data").glob("*.json")):
        if not file.name.endswith(".fetched.json"):
            yield from _of_data(file)
    for note in sorted((folder.root / "views").glob("*.json")) if drawn else ():
        yield from _of_view(note, drawn)


def _sentence(read: Callable[[Path], object], file: Path) -> str | None:
    """What a reader says of a file; None if it reads it."""
    try:
        read(file)
    except BlastError as error:
        return str(error).partition(": ")[2] or str(error)
    return None


def _of_record(file: Path, folder: GridFolder) -> Iterator[Checked]:
    try:
        record = read_record(file)
    except BlastError as error:
        yield Checked("record", file, str(error).partition(": ")[2])
        return
    altered = "run_digest" in record and record["run_digest"] != json_digest(record["run"])
    yield Checked("record", file, f"its part 'run' was changed by hand; {AGAIN}" if altered else None)
    try:
        artifacts = list(artifact_files(folder, record))
    except BlastError as error:
        yield Checked("record", file, str(error))
        return
    for name, place, _ in artifacts:
        fault = artifact_fault(folder, record, name)
        yield Checked(name, place, f"{fault}; {AGAIN}" if fault else None)


def _fault_of_language(file: Path) -> str | None:
    try:
        values = read_language(file)
    except BlastError as error:
        return str(error).partition(": ")[2]
    if values.get("digest") not in (None, language_digest(values)):
        return "its contents do not match its digest; delete it and run again: only the metrics are computed again."
    return None


def _of_data(file: Path) -> Iterator[Checked]:
    values = read_made(file)
    facts = values.get("facts")
    if values.get("status") == "failed":
        yield Checked("data", file, str(values.get("cause")))
    elif not isinstance(facts, dict):
        yield Checked("data", file, "these facts are damaged; delete the file and run again.")
    elif isinstance(folder := facts.get("folder"), str):
        fault = None if is_whole(Path(folder)) else "is missing or was altered; run again: it is made again."
        yield Checked("data", Path(folder), fault)
    else:
        yield Checked("data", file, None)


def _of_view(note: Path, drawn: Path) -> Iterator[Checked]:
    files = read_made(note).get("files")
    if not isinstance(files, dict):
        yield Checked("view", note, "this note is damaged; delete it and run again: the view is drawn again.")
        return
    for name, digest in files.items():
        file = drawn / Path(name).name
        if not file.is_file():
            yield Checked("view", file, "is missing; run again: it is drawn again.")
        else:
            fault = None if file_digest(file) == digest else "was altered; run again: it is drawn again."
            yield Checked("view", file, fault)
