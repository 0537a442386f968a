"""The verdict of a run: lists what failed and moves it aside, so that the next run does exactly that again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from blast.errors import BlastError
from blast.evaluation.requests import read_requests
from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point, read_plan
from blast.experiment.records.artifacts import artifact_fault
from blast.experiment.records.put_aside import put_aside
from blast.experiment.records.record import read_language, read_record
from blast.experiment.run.bad_points import bad_points
from blast.files import read_json, remove, write_atomically

# The stamp of an MLflow import that has to be tried again begins with this.
NOT_IMPORTED = "not imported"


def _status_of_point(folder: GridFolder, point: str) -> tuple[str, str | None]:
    """The status of the record of a point, and why it is not good."""
    file = folder.record(point)
    if not (file.exists() or file.is_symlink()):
        return "missing", "there is no record; run again."
    try:
        record = read_record(file)
    except BlastError as error:
        return "damaged", str(error)
    if record["status"] == "ok" and (unfinished := record["result"].get("unfinished")):
        return "unfinished", unfinished
    return record["status"], record["cause"]


def _status_of_dataset(file: Path) -> tuple[str, str | None]:
    """The status of the facts about a dataset, and why there are none."""
    try:
        values = read_json(file, "dataset file", "run again.", ("status",))
    except BlastError as error:
        return "failed", str(error)
    return values["status"], values.get("cause")


def _status_of_language(folder: GridFolder, point: str) -> tuple[str, str | None]:
    """The status of the language metrics of a point, and why there are none."""
    try:
        language = read_language(folder.language(point))
    except BlastError as error:
        return "failed", str(error)
    return language["status"], language.get("cause")


def judge_grid(folder: GridFolder) -> tuple[int, list[str]]:
    """Checks every file that a grid should have made.

    Failed records are moved to `failed/`, and damaged ones to `damaged/`. Failed dataset facts, language metrics and
    stamps are deleted, and where something failed, damaged requests too. So the next run redoes these and nothing else.
    The record of an unfinished point stays until the next run replaces it.

    Returns:
        How many points there are, and a sentence for each failure.
    """
    points = list(read_plan(folder.plan).values())
    sentences = []
    for dataset in dict.fromkeys(point.dataset for point in points if point.dataset):
        status, cause = _status_of_dataset(folder.data(dataset))
        if status != "ok":
            sentences.append(f"dataset {dataset}: {cause}")
            remove(folder.data(dataset))
            remove(folder.fetched(dataset))
            remove(folder.requests_key(dataset))
    for point in points:
        status, cause = _status_of_point(folder, point.id)
        if status == "unfinished":
            sentences.append(f"point {point.id}: {cause}")
            write_atomically(folder.retry(point.id), f"{cause}\n")
        elif status != "ok":
            place = put_aside(folder, point.id)
            if status == "damaged":
                cause = f"its record was damaged and is now {place}; run again: only this point is redone."
            sentences.append(f"point {point.id}: {cause}")
        elif folder.language(point.id).exists():
            status, cause = _status_of_language(folder, point.id)
            if status != "ok":
                sentences.append(f"language metrics of {point.id}: {cause}")
                remove(folder.language(point.id))
    if sentences:
        sentences += _put_damaged_inputs_aside(points, folder)
    for stamp in sorted(folder.runs.glob("*/mlflow/*.done")):
        if (said := stamp.read_text()).startswith(NOT_IMPORTED):
            sentences.append(f"MLflow: {said.strip()}")
            stamp.unlink()
    return len(points), sentences


def verdict_on(folder: GridFolder) -> tuple[str, list[str]]:
    """The verdict on a grid of which no point failed; see `run.bad_points`.

    Returns:
        The summary, and a line for everything that is bad about a point.
    """
    points = read_plan(folder.plan)
    bad = dict(bad_points(points.values(), folder))
    lines = [f"BAD point {name}: {sentence}" for name, sentences in bad.items() for sentence in sentences]
    if not bad:
        return f"all {len(points)} points are good", []
    return f"all {len(points)} points are done; {len(bad)} of them {'is' if len(bad) == 1 else 'are'} bad", lines


def _put_damaged_inputs_aside(points: Sequence[Point], folder: GridFolder) -> Iterator[str]:
    """Removes damaged requests and puts aside the records of damaged scores: each would fail again at every run."""
    for dataset in dict.fromkeys(point.dataset for point in points if point.dataset):
        requests = folder.requests(dataset)
        if requests.exists() or requests.is_symlink():
            try:
                read_requests(requests)
            except BlastError as error:
                remove(requests)
                remove(folder.requests_key(dataset))
                yield f"requests of {dataset}: {error}"
    for point in points:
        # Without language metrics although there are tasks: they could not be made of these scores.
        if not point.evaluation.get("tasks") or folder.language(point.id).is_file():
            continue
        try:
            record = read_record(folder.record(point.id))
        except BlastError:
            continue
        if record["status"] == "ok" and (fault := artifact_fault(folder, record, "scores")):
            put_aside(folder, point.id)
            yield f"point {point.id}: {fault}; run again: only this point is redone."
