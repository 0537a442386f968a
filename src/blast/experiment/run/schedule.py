"""In which order the points of a job run, and which of them run side by side.

With one job at once, a child runs as many points as it can, one after the other. With several, each training has a
child of its own. Benchmarks are timed, so they run alone, unless each point is told to hold just its own GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from blast.errors import BlastError
from blast.experiment.plan.point import Point


def needs_first(points: Sequence[Point]) -> list[Point]:
    """The points in their order, except that each comes after those of them whose checkpoints it needs.

    Raises:
        BlastError: if points need each other.
    """
    left, order = {point.id: point for point in points}, []
    while left:
        ready = next((point for point in left.values() if not left.keys() & set(point.needs)), None)
        if ready is None:
            raise BlastError(
                f"the points {', '.join(map(repr, left))} need each other's checkpoints, so none can be the first; "
                "mend 'parent' or 'teacher' of one of them."
            )
        order.append(left.pop(ready.id))
    return order


@dataclass(frozen=True)
class Schedule:
    """How the points of a job share the machine.

    Attributes:
        jobs: Places for children at once; a training of several processes takes several.
        gpus: GPUs that the job sees.
        own_gpus: Whether each point holds its own GPU in any case, benchmarks included.
    """

    jobs: int = 1
    gpus: int = 0
    own_gpus: bool = False

    @classmethod
    def of(cls, jobs: int | None, gpus: int, own_gpus: bool = False) -> Schedule:
        """The schedule of a job.

        Args:
            jobs: Children at once; None for one a GPU.
            gpus: GPUs that the job sees.
            own_gpus: See above.

        Raises:
            BlastError: if there are GPUs, but fewer than `jobs`.
        """
        if jobs is not None and jobs > gpus > 0:
            raise BlastError(
                f"{jobs} jobs at once need {jobs} GPUs, one each, and {gpus} can be seen; "
                f"write '--jobs {gpus}' or leave it out."
            )
        return cls(jobs or max(1, gpus), gpus, own_gpus)

    def _alone(self, point: Point) -> bool:
        return point.stage == "benchmark" and not (self.own_gpus and self.gpus)

    def places(self, point: Point) -> int:
        """How many of the places a point takes while it runs."""
        return self.jobs if self._alone(point) else min(point.processes, self.jobs)

    def gpus_of(self, point: Point) -> int:
        """How many GPUs a point holds while it runs; 0 where it shares them. One that runs alone holds all of them."""
        if self._alone(point):
            return self.gpus
        shared = self.jobs == 1 and not self.own_gpus and point.processes == 1
        return 0 if shared else point.processes

    def next(self, waiting: Sequence[Point], running: Sequence[Sequence[Point]]) -> list[Point]:
        """The points that the next child runs, one after the other; empty if none can start now.

        Args:
            waiting: Points that have not started, as `needs_first` orders them.
            running: The points of each child that runs, those that are done left out.
        """
        if self.jobs == 1:
            if running or not waiting:
                return []
            # A child holds the same GPUs for all its points.
            gpus = self.gpus_of(waiting[0])
            alike = takewhile(lambda point: point.processes == 1 and self.gpus_of(point) == gpus, waiting)
            return list(alike) or list(waiting[:1])
        undone = {point.id for part in (waiting, *running) for point in part}
        free = self.jobs - sum(self.places(part[0]) for part in running)
        for point in waiting:
            if self.places(point) <= free and not undone & set(point.needs):
                return [other for other in waiting if self._alone(other)] if self._alone(point) else [point]
        return []
