"""How far a run of the workflow is while it runs, from the files that it writes: jobs, points, and steps in points."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from blast.experiment.plan.paths import PROGRESS, GridFolder
from blast.experiment.run.progress_file import Progress, progress_of
from blast.experiment.todo.todo import Todo


@dataclass(frozen=True)
class Look:
    """How far a run is.

    Attributes:
        jobs: Jobs that are done, and all that are planned but pictures and tables; None if only a part of them runs.
        points: Points that are done, and all that this run runs.
        running: The progress of each point that runs.
    """

    jobs: tuple[int, int] | None
    points: tuple[int, int]
    running: dict[str, Progress]


@dataclass
class Watch:
    """Looks at a run again and again.

    Args:
        folder: Folder of the grid.
        started: When the run began, seconds since 1970.
        whole: Whether all jobs run, rather than those of some targets.
    """

    folder: GridFolder
    started: float
    whole: bool = True
    _todo: Todo | None = None
    _left: set[str] = field(default_factory=set)

    def look(self) -> Look | None:
        """How far it is; None before its jobs are known."""
        if self._todo is None:
            if (found := self._read()) is None:
                return None
            self._todo, self._left = found, {name for job in found.jobs for name in job.ids}
        todo = self._todo
        points = sum(len(job.ids) for job in todo.jobs)
        running = {}
        for name in sorted(self._left):
            if _written(self.folder.record(name)) >= self.started:
                self._left.discard(name)
                continue
            # A file of an earlier run says nothing of this one.
            now = _written(self.folder.work(name) / PROGRESS) >= self.started
            if now and (progress := progress_of(self.folder, name)):
                running[name] = progress
        jobs = (self._stamps(todo.run), _planned(todo)) if self.whole else None
        return Look(jobs, (points - len(self._left), points), running)

    def _read(self) -> Todo | None:
        if _written(self.folder.todo) < self.started:
            return None
        try:
            return Todo.read(self.folder.todo)
        except ValueError:
            return None

    def _stamps(self, run: int) -> int:
        root = self.folder.runs / str(run)
        return sum(len(list(stage.glob("*.done"))) for stage in (root.iterdir() if root.is_dir() else ()))


def _planned(todo: Todo) -> int:
    """How many stamps a run makes."""
    # Data that is fetched is prepared too.
    stages = (*todo.jobs, *todo.language, *todo.mlflow, *todo.requests, *todo.datasets, *todo.datasets)
    return len(stages) + todo.plan


def _written(file: Path) -> float:
    try:
        return os.stat(file).st_mtime
    except OSError:
        return 0.0
