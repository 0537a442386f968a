"""How far a grid is: each point done, running, failed, stale, damaged, stopped or waiting, with causes and commands."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from blast.experiment.plan.grid import Plan
from blast.experiment.plan.paths import PROGRESS, GridFolder
from blast.experiment.records.language import read_made
from blast.experiment.records.record import retry_reason
from blast.experiment.run.locks import is_held
from blast.experiment.run.progress import duration
from blast.experiment.run.progress_file import Progress, progress_of
from blast.experiment.todo.files import has_requests, is_prepared
from blast.experiment.todo.todo import PointLeft, find_left
from blast.experiment.todo.views import suite_of
from blast.experiment.tracking.imports import tracking_store

# Points that are named of each state.
NAMED = 10


class Stand(Enum):
    """How far a point is; the value is its column."""

    DONE = "done"
    RUNNING = "running"
    FAILED = "failed"
    STALE = "stale"
    DAMAGED = "damaged"
    STOPPED = "stopped"
    WAITING = "waiting"


@dataclass(frozen=True)
class Status:
    """How far a grid is.

    Attributes:
        stages: By stage, how many of its parts there are, by how far they are.
        stands: By id, how far each point is.
        running: By id, the progress of each point that runs.
        failures: By what failed, its cause, its log and the command that repeats it.
        process: Whether the workflow runs this grid now.
    """

    stages: dict[str, Counter[Stand]]
    stands: dict[str, Stand]
    running: dict[str, Progress]
    failures: dict[str, tuple[str, str | None, str]]
    process: bool


def status_of(config: Path, plan: Plan, folder: GridFolder) -> Status:
    """Looks at the files of a grid; writes nothing.

    Args:
        config: Its config file, for the commands.
        plan: Its points.
        folder: Its folder.
    """
    stages: dict[str, Counter[Stand]] = {}
    stands, running, failures = {}, {}, {}
    for dataset in plan.datasets:
        stand, cause = _of_dataset(dataset, plan, folder)
        stages.setdefault("data", Counter())[stand] += 1
        if cause:
            failures[f"dataset {dataset}"] = (cause, None, shlex.join(["blast", "fetch", str(config)]))
    for left in find_left(plan, folder, tracking_store()):
        point = left.point
        stand, progress = _of_point(left, folder)
        stands[point.id] = stand
        stages.setdefault("train" if point.stage == "train" else suite_of(point), Counter())[stand] += 1
        if progress:
            running[point.id] = progress
        if stand is Stand.FAILED:
            failures[point.id] = _failure(left, folder, config)
        if point.evaluation.get("tasks"):
            stages.setdefault("lm-eval", Counter())[_of_metrics(left, folder, failures)] += 1
        stages.setdefault("mlflow", Counter())[Stand.WAITING if left.imports else Stand.DONE] += 1
    order = ["data", "train", *sorted(stages.keys() - {"data", "train", "lm-eval", "mlflow"}), "lm-eval", "mlflow"]
    return Status({name: stages[name] for name in order if name in stages}, stands, running, failures, is_held(folder))


def _of_dataset(dataset: str, plan: Plan, folder: GridFolder) -> tuple[Stand, str | None]:
    facts = read_made(folder.data(dataset))
    if facts.get("status") == "failed":
        return Stand.FAILED, str(facts.get("cause"))
    ready = is_prepared(dataset, plan, folder)
    if ready and plan.tasks(dataset) and not has_requests(dataset, plan, folder):
        return Stand.WAITING, None
    return (Stand.DONE if ready else Stand.STALE if facts else Stand.WAITING), None


def _of_point(left: PointLeft, folder: GridFolder) -> tuple[Stand, Progress | None]:
    point, state = left.point, left.state
    if not left.runs:
        return Stand.DONE, None
    if (folder.work(point.id) / PROGRESS).is_file():
        progress = progress_of(folder, point.id)
        if is_held(folder, point.id):
            return Stand.RUNNING, progress
        if state.found is None and not folder.failed(point.id).is_file():
            return Stand.STOPPED, progress
    if state.found is None:
        damaged = "damaged" in state.reason or folder.damaged(point.id).is_file()
        if damaged:
            return Stand.DAMAGED, None
        return (Stand.FAILED if folder.failed(point.id).is_file() else Stand.WAITING), None
    if retry_reason(state.found):
        return Stand.FAILED, None
    return (Stand.DAMAGED if "by hand" in state.reason or "not here" in state.reason else Stand.STALE), None


def _of_metrics(left: PointLeft, folder: GridFolder, failures: dict[str, Any]) -> Stand:
    if not left.metrics:
        return Stand.DONE
    made = read_made(folder.language(left.point.id))
    if made.get("status") == "failed" and not left.runs:
        command = ["blast", "language", left.point.id, "--grid-dir", str(folder.root)]
        failures[f"lm-eval metrics of {left.point.id}"] = (str(made.get("cause")), None, shlex.join(command))
        return Stand.FAILED
    return Stand.WAITING if left.runs or not made else Stand.STALE


def _failure(left: PointLeft, folder: GridFolder, config: Path) -> tuple[str, str | None, str]:
    """Cause, log and command of a failed point."""
    name = left.point.id
    record = left.state.found or read_made(folder.failed(name))
    cause = (retry_reason(record) if record else None) or "its record of the failure cannot be read"
    log = folder.root / str(record["log"]) if record.get("log") else None
    command = ["blast", "rerun", name, "--config", str(config), "--out", str(folder.root)]
    return (cause.splitlines() or [""])[0], str(log) if log and log.is_file() else None, shlex.join(command)


def describe_progress(progress: Progress) -> str:
    """`training, step 20 of 60, loss 2.31, 41 s left`."""
    parts = [progress.phase or "starting"]
    if progress.steps:
        parts.append(f"step {progress.step} of {progress.steps}")
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.4g}")
    if progress.left is not None and progress.phase == "training":
        parts.append(f"{duration(progress.left)} left")
    return ", ".join(parts)


def describe(status: Status, every: bool = False) -> Iterator[str]:
    """The lines of a status.

    Args:
        status: What was found.
        every: Whether every point of each state is named.
    """
    shown = [stand for stand in Stand if any(counts[stand] for counts in status.stages.values())]
    width = max(map(len, status.stages), default=0) + 2
    yield " " * width + "".join(f"{stand.value:>9}" for stand in shown)
    for name, counts in status.stages.items():
        yield f"{name:<{width}}" + "".join(f"{counts[stand] or '·':>9}" for stand in shown)
    most = len(status.stands) if every else NAMED
    for stand in (Stand.RUNNING, Stand.STOPPED):
        names = [name for name in status.running if status.stands[name] is stand]
        yield from _named(stand, [f"{name}: {describe_progress(status.running[name])}" for name in names], most)
    failed = list(status.failures.items())
    if failed:
        yield "failed:"
    for name, (cause, log, command) in failed[:most]:
        yield f"  {name}: {cause}"
        if log:
            yield f"      log:   {log}"
        yield f"      again: {command}"
    if len(failed) > most:
        yield f"  … and {len(failed) - most} more (--list names them)"
    for stand in (Stand.STALE, Stand.DAMAGED, *((Stand.WAITING, Stand.DONE) if every else ())):
        yield from _named(stand, [name for name, found in status.stands.items() if found is stand], most)


def _named(stand: Stand, lines: list[str], most: int) -> Iterator[str]:
    if lines:
        yield f"{stand.value}:"
    yield from (f"  {line}" for line in lines[:most])
    if len(lines) > most:
        yield f"  … and {len(lines) - most} more (--list names them)"
