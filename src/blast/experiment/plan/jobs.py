"""Points in jobs: what one process runs, one point after the other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from blast import datasets
from blast.experiment.plan.config import Config
from blast.experiment.plan.point import Point
from blast.files import json_digest

# Snakemake takes a millisecond and 13 kB for each job that it plans, and each job of points has up to two others.
MOST_JOBS = 1000


@dataclass(frozen=True)
class Job:
    """Points that one process runs, one after the other.

    Attributes:
        name: Names the job and its log; made of its points.
        stage: Stage of its points.
        dataset: The dataset its points share; None for benchmarks.
        ids: Its points.
        after: Points of other jobs whose checkpoints it needs.
    """

    name: str
    stage: str
    dataset: str | None
    ids: tuple[str, ...]
    after: tuple[str, ...] = ()


def make_jobs(config: Config, points: Iterable[Point]) -> tuple[Job, ...]:
    """Puts points into jobs: points of one stage, suite, architecture and dataset, `points_per_job` at a time.

    A job is named by its points, so it has the same name whatever else there is to do. There are about `MOST_JOBS` at
    most: larger grids have more points in a job.

    Args:
        config: Says how many points a job has.
        points: All points of a grid, or those that have to run.

    Returns:
        The jobs, each behind those that train what it needs.
    """
    groups: dict[tuple, list[Point]] = {}
    for point in points:
        suite = (point.benchmark or {}).get("suite")
        groups.setdefault((point.stage, suite, point.architecture, point.dataset), []).append(point)
    least = math.ceil(sum(map(len, groups.values())) / MOST_JOBS)
    return tuple(job for key, members in groups.items() for job in _jobs_of_group(config, key, members, least))


def _jobs_of_group(config: Config, key: tuple, members: list[Point], least: int) -> Iterator[Job]:
    stage, suite, architecture, dataset = key
    # Dense runs come first, then the points that need them, so that one job can hold both.
    members.sort(key=lambda point: (bool(point.needs) or point.method != "dense", not point.needs))
    size = config.points_per_job.get(datasets.base_name(dataset or ""), config.points_per_job.get("default", 1))
    size = len(members) if stage == "benchmark" else max(size, least)
    label = f"{architecture}.{dataset}" if dataset else f"benchmark-{suite}-{architecture}"
    for first in range(0, len(members), size):
        part = members[first : first + size]
        ids = tuple(point.id for point in part)
        needed = dict.fromkeys(other for point in part for other in point.needs)
        after = tuple(other for other in needed if other not in ids)
        yield Job(name=job_name(label, ids), stage=stage, dataset=dataset, ids=ids, after=after)


def job_name(label: str, ids: Sequence[str]) -> str:
    """The name of a job by its points: the id of a single one, else a label and a digest of the ids."""
    return ids[0] if len(ids) == 1 else f"{label}.{json_digest(list(ids)).removeprefix('sha256:')[:10]}"
