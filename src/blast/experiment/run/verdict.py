"""The last word of a run: what failed, put aside so that the next run tries exactly that again."""

from __future__ import annotations

import json
from pathlib import Path

from blast.experiment.plan.grid import Plan
from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.run.locks import grid_is_free
from blast.files import read_json, write_atomically

# What a stamp of the MLflow stage begins with when the import has to be tried again.
NOT_IMPORTED = "not imported"


def drop_stale_stamps(plan: Plan, folder: GridFolder) -> list[Path]:
    """Removes the stamp of each job that lacks one of its files or is to try a point again: only that is done again.

    What failed in a run that was cut off before its verdict is put aside first, as the verdict would have. A verdict
    that stands is taken back then: Snakemake makes nothing that is missing behind a target that is there.
    """
    dropped = []
    verdict = folder.root / "verdict.txt"
    judged = verdict.stat().st_mtime if verdict.is_file() else 0.0
    alone = grid_is_free(folder)
    for job in plan.jobs:
        stamp = folder.stamp(job.stage, job.name)
        if alone and stamp.is_file() and stamp.stat().st_mtime > judged:
            for name in job.ids:
                if _status(folder.record(name))[0] == "failed":
                    _move_aside(folder, name)
        for stage, file_of in ((job.stage, folder.record), ("language", folder.language)):
            stamp = folder.stamp(stage, job.name)
            again = any(not file_of(name).is_file() or folder.retry(name).is_file() for name in job.ids)
            if stamp.is_file() and again:
                stamp.unlink()
                dropped.append(stamp)
    if dropped:
        verdict.unlink(missing_ok=True)
    return dropped


def _status(file: Path) -> tuple[str, str | None]:
    try:
        values = json.loads(file.read_text())
        if values["status"] == "ok" and (unfinished := values.get("result", {}).get("unfinished")):
            return "unfinished", unfinished
        return values["status"], values.get("cause")
    except FileNotFoundError:
        return "missing", "there is no record; run again."
    except (OSError, ValueError, KeyError):
        return "failed", "its record is damaged or half-written."


def settle(folder: GridFolder) -> tuple[int, list[str]]:
    """Looks at everything a grid should have made.

    Returns:
        How many points there are, and a sentence for each failure. The failed files are moved to `failed/` (records)
        or removed (dataset facts, language metrics, stamps), so that the next run redoes them and nothing else. The
        record of a point that was not finished stays, with what it measured, until the next run has replaced it.
    """
    points = [
        Point.from_dict(values) for values in read_json(folder.root / "plan.json", "plan", "run the workflow again.")
    ]
    sentences = []
    for dataset in dict.fromkeys(point.dataset for point in points if point.dataset):
        status, cause = _status(folder.data(dataset))
        if status != "ok":
            sentences.append(f"dataset {dataset}: {cause}")
            folder.data(dataset).unlink(missing_ok=True)
            (folder.root / "data" / f"{dataset}.fetched.json").unlink(missing_ok=True)
            folder.stamp("requests", dataset).unlink(missing_ok=True)
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
    for stamp in sorted((folder.root / "jobs" / "mlflow").glob("*.done")):
        if (said := stamp.read_text()).startswith(NOT_IMPORTED):
            sentences.append(f"MLflow: {said.strip()}")
            stamp.unlink()
    return len(points), sentences


def _move_aside(folder: GridFolder, point: str) -> None:
    record = folder.record(point)
    if record.is_file():
        folder.failed(point).parent.mkdir(parents=True, exist_ok=True)
        record.replace(folder.failed(point))
    folder.language(point).unlink(missing_ok=True)
