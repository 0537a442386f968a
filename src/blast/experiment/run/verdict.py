"""The verdict of a run: lists what failed and moves it aside, so that the next run does exactly that again."""

from __future__ import annotations

import json
from pathlib import Path

from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import read_plan
from blast.experiment.run.bad_points import bad_points
from blast.files import write_atomically

# The stamp of an MLflow import that has to be tried again begins with this.
NOT_IMPORTED = "not imported"


def _status(file: Path) -> tuple[str, str | None]:
    try:
        values = json.loads(file.read_text())
        if values["status"] == "ok" and (unfinished := values.get("result", {}).get("unfinished")):
            return "unfinished", unfinished
        return values["status"], values.get("cause")
    except FileNotFoundError:
        return "missing", "there is no record; run again."
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return "failed", "its record is damaged or half-written."


def judge_grid(folder: GridFolder) -> tuple[int, list[str]]:
    """Checks every file that a grid should have made.

    Failed records are moved to `failed/`. Failed dataset facts, language metrics and stamps are deleted. So the next
    run redoes these and nothing else. The record of an unfinished point stays until the next run replaces it.

    Returns:
        How many points there are, and a sentence for each failure.
    """
    points = list(read_plan(folder.plan).values())
    sentences = []
    for dataset in dict.fromkeys(point.dataset for point in points if point.dataset):
        status, cause = _status(folder.data(dataset))
        if status != "ok":
            sentences.append(f"dataset {dataset}: {cause}")
            folder.data(dataset).unlink(missing_ok=True)
            folder.fetched(dataset).unlink(missing_ok=True)
            folder.requests_key(dataset).unlink(missing_ok=True)
    for point in points:
        status, cause = _status(folder.record(point.id))
        if status != "ok":
            sentences.append(f"point {point.id}: {cause}")
            if status == "unfinished":
                write_atomically(folder.retry(point.id), f"{cause}\n")
            else:
                _move_aside(folder, point.id)
        elif folder.language(point.id).is_file():
            status, cause = _status(folder.language(point.id))
            if status != "ok":
                sentences.append(f"language metrics of {point.id}: {cause}")
                folder.language(point.id).unlink()
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


def _move_aside(folder: GridFolder, point: str) -> None:
    record = folder.record(point)
    if record.is_file():
        folder.failed(point).parent.mkdir(parents=True, exist_ok=True)
        record.replace(folder.failed(point))
    folder.language(point).unlink(missing_ok=True)
