"""The jobs of the workflow: those whose points, metrics or imports are not there yet, or not of what is asked now."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from blast.errors import BlastError
from blast.experiment.plan.config import Config
from blast.experiment.plan.grid import Plan, without_garbage_collection
from blast.experiment.plan.jobs import Job, job_name, make_jobs
from blast.experiment.plan.paths import GridFolder, names_in
from blast.experiment.plan.point import Point
from blast.experiment.records.checked import Checked
from blast.experiment.records.language import has_language_metrics
from blast.experiment.records.state import State, state_of
from blast.experiment.todo.files import has_requests, is_prepared
from blast.experiment.todo.views import View, outdated_views
from blast.experiment.tracking.imports import Imports
from blast.files import write_json

# Points of a job that only computes metrics or only imports: starting its process takes three seconds, a point .1 s.
BATCH = 200
# Reasons that are told; each failed point may have its own.
REASONS = 5


@dataclass(frozen=True)
class Todo:
    """What the workflow runs; jobs of one name belong together.

    Attributes:
        run: Number of the run; no folder of a run has it yet.
        plan: Whether the config and the points are to be written.
        datasets: Datasets to fetch and to prepare.
        requests: Datasets whose lm-eval requests are to be built.
        jobs: Jobs that train, evaluate or time points.
        language: Jobs that compute the metrics of lm-eval.
        mlflow: Jobs that import points.
        views: Names of the pictures and tables that do not show what is there.
        later_views: Names of those that will not, when the jobs are done.
        why: How many points run, by the reason; the most frequent ones.
    """

    run: int
    plan: bool
    datasets: tuple[str, ...]
    requests: tuple[str, ...]
    jobs: tuple[Job, ...]
    language: tuple[Job, ...]
    mlflow: tuple[Job, ...]
    views: tuple[str, ...]
    later_views: tuple[str, ...]
    why: dict[str, int]

    @property
    def changes_results(self) -> bool:
        """Whether the verdict of an earlier run says nothing of the grid any more."""
        return bool(self.plan or self.datasets or self.jobs or self.language or self.mlflow)

    def write(self, file: Path) -> None:
        """Writes it for the processes of this run that read the workflow again, as those of a cluster do."""
        write_json(file, asdict(self))

    @classmethod
    def read(cls, file: Path) -> Todo:
        """Reads what `write` wrote.

        Raises:
            BlastError: if the file is missing or damaged.
        """
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            lists = {key: tuple(values[key]) for key in ("datasets", "requests", "views", "later_views")}
            jobs = {key: tuple(map(_job, values[key])) for key in ("jobs", "language", "mlflow")}
            return cls(run=values["run"], plan=values["plan"], why=values["why"], **lists, **jobs)
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise BlastError(
                f"{file}: the jobs of this run cannot be read ({error}); run the workflow again."
            ) from error


def _job(values: dict[str, Any]) -> Job:
    return Job(**{**values, "ids": tuple(values["ids"]), "after": tuple(values["after"])})


def find_todo(
    config: Config,
    plan: Plan,
    folder: GridFolder,
    store: str,
    views: Iterable[View] = (),
    recorded: Path | None = None,
    found: list[PointLeft] | None = None,
) -> Todo:
    """Finds what is left to do in a grid. Takes time in proportion to its points, and writes nothing.

    Args:
        config: The config.
        plan: Its points.
        folder: Folder of the grid.
        store: Address of MLflow's store.
        views: Pictures and tables of the grid.
        recorded: `results/recorded`, which views read too.
        found: What `find_left` found, if it was asked before.
    """
    found = find_left(plan, folder, store) if found is None else found
    jobs = make_jobs(config, (left.point for left in found if left.runs))
    datasets = tuple(name for name in plan.datasets if not is_prepared(name, plan, folder))
    changed = [left.point for left in found if left.runs or left.metrics]
    views = list(views)
    asked = dict.fromkeys(left.point.dataset or "" for left in found if left.metrics)
    return Todo(
        run=1 + max((int(name) for name in names_in(folder.runs) if name.isdecimal()), default=0),
        plan=not is_written(config, plan, folder),
        datasets=datasets,
        requests=tuple(name for name in asked if name in datasets or not has_requests(name, plan, folder)),
        jobs=jobs,
        language=tuple(_later(jobs, (left.point for left in found if left.metrics), "language")),
        mlflow=tuple(_later(jobs, (left.point for left in found if left.imports), "mlflow")),
        views=outdated_views(views, plan, folder, recorded),
        later_views=tuple(view.name for view in views if view.shows_any(changed)),
        why=dict(Counter(left.state.reason for left in found if left.runs).most_common(REASONS)),
    )


class PointLeft(NamedTuple):
    """What is left to do for a point: running it, the metrics of lm-eval, the import."""

    point: Point
    state: State
    runs: bool
    metrics: bool
    imports: bool

    @classmethod
    def of(cls, point: Point, folder: GridFolder, imports: Imports, checked: Checked | None = None) -> PointLeft:
        """Looks at the files of a point."""
        state = state_of(point, folder, checked)
        has_tasks = bool(point.evaluation.get("tasks"))
        if state.record_digest is None:
            return cls(point, state, True, has_tasks, True)
        metrics = has_tasks and not has_language_metrics(point, state.record_digest, folder)
        return cls(point, state, False, metrics, metrics or not imports.has(point.id, state.record_digest))


@without_garbage_collection()
def find_left(plan: Plan, folder: GridFolder, store: str) -> list[PointLeft]:
    """What is left to do for each point of a plan; writes nothing but what it knows, in the cache.

    Args:
        plan: The points.
        folder: Folder of the grid.
        store: Address of MLflow's store.
    """
    imports, checked = Imports(folder, store), Checked()
    found = [PointLeft.of(point, folder, imports, checked) for point in plan.points.values()]
    checked.save()
    return found


def _later(jobs: Iterable[Job], points: Iterable[Point], stage: str) -> Iterator[Job]:
    """The jobs of a later stage: one for each job of points, with its points, and batches of points that ran before."""
    left = {point.id: point for point in points}
    for job in jobs:
        ids = tuple(name for name in job.ids if left.pop(name, None))
        if ids:
            yield replace(job, stage=stage, ids=ids, after=())
    groups: dict[str, list[str]] = {}
    for point in left.values():
        groups.setdefault(point.dataset or "benchmarks", []).append(point.id)
    for label, ids in groups.items():
        for first in range(0, len(ids), BATCH):
            part = tuple(ids[first : first + BATCH])
            dataset = None if label == "benchmarks" else label
            yield Job(name=job_name(label, part), stage=stage, dataset=dataset, ids=part)


def begin_run(todo: Todo, folder: GridFolder) -> None:
    """Readies the folder of a grid for a run: its jobs are written down, and stamps of earlier runs are removed.

    So is the verdict, if results change: it is that of an earlier run.
    """
    todo.write(folder.todo)
    for name in names_in(folder.runs):
        if name != str(todo.run):
            shutil.rmtree(folder.runs / name, ignore_errors=True)
    if todo.changes_results:
        folder.verdict.unlink(missing_ok=True)


def is_written(config: Config, plan: Plan, folder: GridFolder) -> bool:
    """Whether the folder of a grid holds this config and these points."""
    try:
        points = json.loads(folder.plan.read_text(encoding="utf-8"))
        written = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return False
    # By way of JSON, in which a tuple is a list.
    same = written == json.loads(json.dumps(config.to_dict()))
    return same and points == [point.to_dict() for point in plan.points.values()]
