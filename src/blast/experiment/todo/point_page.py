"""One point on one page: what it is, how far it is, what it measured, its files, and the commands for it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blast.experiment.plan.grid import Plan
from blast.experiment.plan.paths import PROGRESS, TRAINING_STATE, GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.records.artifacts import artifact_fault
from blast.experiment.records.language import language_metrics
from blast.experiment.run.locks import is_held
from blast.experiment.run.progress import duration
from blast.experiment.run.progress_file import progress_of
from blast.experiment.todo.cost import in_bytes
from blast.experiment.todo.status import describe_progress
from blast.experiment.todo.todo import PointLeft
from blast.experiment.todo.why import flat, why_of
from blast.experiment.tracking.imports import Imports, tracking_store

# Settings at these values say nothing.
EMPTY: tuple[Any, ...] = (None, {}, [])


def describe(name: str, config: Path, plan: Plan, folder: GridFolder) -> Iterator[str]:
    """The lines about a point.

    Args:
        name: Its id, one of the plan.
        config: The config file of its grid, for the commands.
        plan: The plan of its grid.
        folder: Folder of its grid.
    """
    point = plan.points[name]
    left = PointLeft.of(point, folder, Imports(folder, tracking_store()))
    record = left.state.found
    yield f"{name}: {_state(left, folder)}"
    yield f"  digest of its settings {point.digest[:19]}"
    yield "settings:"
    for key, value in flat(point.values):
        if value not in EMPTY and key not in ("id", "format"):
            yield f"  {key:<28} {value}"
    if needed := point.needs:
        yield f"needs the checkpoint of: {', '.join(needed)}"
    if needing := [other.id for other in plan.points.values() if name in other.needs]:
        yield f"needed by: {', '.join(needing)}"
    if record:
        yield from _results(record, folder)
        yield from _run(record)
    yield from _files(point, record, folder)
    yield "commands:"
    yield f"  run it again, apart from the grid: {shlex.join(['blast', 'rerun', name, '--config', str(config)])}"
    yield f"  run what is left of the grid:      {shlex.join(['blast', 'run', str(config)])}"


def _state(left: PointLeft, folder: GridFolder) -> str:
    name = left.point.id
    if not left.runs:
        return "done" + (", its lm-eval metrics are to be made" if left.metrics else "")
    if (folder.work(name) / PROGRESS).is_file() and (progress := progress_of(folder, name)):
        now = "runs" if is_held(folder, name) else "stopped, and goes on from its last saved state"
        return f"{now}: {describe_progress(progress)}"
    why = why_of(left, folder)
    return f"to run ({why.sentence})"


def _results(record: dict[str, Any], folder: GridFolder) -> Iterator[str]:
    if record["status"] != "ok":
        yield f"failed: {record['cause']}"
        return
    yield "results:"
    metrics = [
        *record["result"].get("metrics", []),
        *language_metrics(record["point"]["id"], folder).get("metrics", []),
    ]
    for metric in metrics:
        labels = ", ".join(str(metric[key]) for key in ("task", "provider", "tokens") if metric.get(key) is not None)
        value = "none" if metric["value"] is None else f"{metric['value']:.6g}"
        unit = metric.get("unit") or ""
        yield f"  {metric['metric'] + (f' ({labels})' if labels else ''):<44} {value} {unit}".rstrip()
    sparsity = record["result"].get("sparsity") or {}
    if sparsity.get("achieved") is not None:
        yield f"  {'achieved sparsity':<44} {sparsity['achieved']:.4g} of {sparsity['target']:.4g}"


def _run(record: dict[str, Any]) -> Iterator[str]:
    run = record["run"]
    yield "run:"
    dirty = " with changes" if run.get("dirty") else ""
    yield f"  took {duration(run['wall_s'])} on {run.get('gpu') or run.get('hardware') or 'an unknown machine'}"
    yield f"  finished {run.get('finished') or 'at an unknown time'}, commit {run.get('commit') or 'unknown'}{dirty}"
    if run.get("command"):
        yield f"  again with: {run['command']}"


def _files(point: Point, record: dict[str, Any] | None, folder: GridFolder) -> Iterator[str]:
    yield "files:"
    places = [folder.record(point.id), folder.failed(point.id), folder.language(point.id), folder.agreement(point.id)]
    places.append(folder.work(point.id) / TRAINING_STATE)
    if record and record.get("log"):
        places.append(folder.root / record["log"])
    for place in places:
        if place.is_file():
            yield f"  {place} ({in_bytes(place.stat().st_size)})"
    for name, artifact in ((record or {}).get("result", {}).get("artifacts") or {}).items():
        place = folder.work(point.id) / artifact["path"]
        fault = artifact_fault(folder, record or {}, name)
        yield f"  {place} ({fault or f'{name}, {in_bytes(_size(place))}, as recorded'})"


def _size(place: Path) -> int:
    files = [file for file in place.rglob("*") if file.is_file()] if place.is_dir() else [place]
    return sum(file.stat().st_size for file in files if file.is_file())
