"""What a config would run and why, before anything runs: what `blast plan` prints. Writes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from blast.experiment.plan.config import Config
from blast.experiment.plan.grid import Plan
from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.resources import jobs_at_once
from blast.experiment.run.progress import duration
from blast.experiment.todo.cost import GUESS, Cost, Records, estimate, in_bytes, in_hours, other_records, records_of
from blast.experiment.todo.todo import Todo, find_left, find_todo
from blast.experiment.todo.views import View
from blast.experiment.todo.why import Kind, Why, reasons
from blast.experiment.tracking.imports import tracking_store

# Points that are named of those that run for one reason, and reasons that are told of one kind.
NAMED, TOLD = 4, 8
# Grids of more points are not compared with what their pictures show: that takes as long as all else.
MOST_VIEWED = 2000


@dataclass(frozen=True)
class Outlook:
    """What a config would run.

    Attributes:
        todo: The jobs of the workflow.
        points: How many points the grid has.
        why: By id, why each point runs that runs.
        cost: What these points cost.
        records: The records that the cost was estimated from.
        at_once: Jobs at once.
        threads: Cores of a job.
        views_seen: Whether pictures and tables were looked at.
    """

    todo: Todo
    points: int
    why: dict[str, Why]
    cost: Cost
    records: Records
    at_once: int
    threads: int
    views_seen: bool


def outlook_of(
    config: Config, plan: Plan, folder: GridFolder, views: Iterable[View] = (), recorded: Path | None = None
) -> Outlook:
    """Looks at the files of a grid.

    Args:
        config: The config.
        plan: Its points.
        folder: Folder of the grid.
        views: Pictures and tables.
        recorded: `results/recorded`.
    """
    seen = len(plan.points) <= MOST_VIEWED
    store = tracking_store()
    found = find_left(plan, folder, store)
    todo = find_todo(config, plan, folder, store, views if seen else (), recorded, found)
    why = reasons(found, folder)
    records = Records()
    for record in records_of(found, folder) if why else ():
        records.add(record)
    cost = estimate((plan.points[name] for name in why if name in plan.points), records, other_records(folder))
    return Outlook(todo, len(plan.points), why, cost, records, jobs_at_once(config), config.threads, seen)


def describe(outlook: Outlook, every: bool = False) -> Iterator[str]:
    """The lines of an outlook.

    Args:
        outlook: What was found.
        every: Whether every point is named.
    """
    runs, kept = len(outlook.why), outlook.points - len(outlook.why)
    kinds = {kind: [name for name, why in outlook.why.items() if why.kind is kind] for kind in Kind}
    counts = [f"{len(names)} {kind.value}" for kind, names in kinds.items() if names]
    yield f"{runs} to run, {kept} kept" + (f": {', '.join(counts)}" if counts else "")
    for kind, names in kinds.items():
        yield from _of_kind(kind, names, outlook.why, every)
    if also := list(_besides(outlook)):
        yield f"besides: {'; '.join(also)}"
    elif not runs:
        yield "nothing is left to do" if outlook.views_seen else "no point is left to run"
    if runs:
        yield from _cost(outlook)


def _of_kind(kind: Kind, names: list[str], why: dict[str, Why], every: bool) -> Iterator[str]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(why[name].sentence, []).append(name)
    shown = sorted(groups.items(), key=lambda group: -len(group[1]))
    for sentence, group in shown if every else shown[:TOLD]:
        yield f"  {len(group)} {kind.value}" + (f": {sentence}" if kind is not Kind.NEW else "")
        yield from (f"      {name}" for name in (group if every else group[:NAMED]))
        if not every and len(group) > NAMED:
            yield f"      … and {len(group) - NAMED} more (--list names them)"
    if not every and len(shown) > TOLD:
        left = sum(len(group) for _, group in shown[TOLD:])
        yield f"  {left} {kind.value} for {len(shown) - TOLD} other reasons (--list tells them)"


def _besides(outlook: Outlook) -> Iterator[str]:
    todo = outlook.todo
    if todo.datasets:
        yield f"data of {', '.join(todo.datasets)}"
    if todo.requests:
        yield f"lm-eval requests of {', '.join(todo.requests)}"
    for jobs, what in ((todo.language, "lm-eval metrics of {}"), (todo.mlflow, "{} into MLflow")):
        if count := sum(len(job.ids) for job in jobs):
            yield what.format(f"{count} {'point' if count == 1 else 'points'}")
    if views := {*todo.views, *todo.later_views}:
        yield f"{len(views)} pictures and tables"


def _cost(outlook: Outlook) -> Iterator[str]:
    cost, at_once = outlook.cost, min(outlook.at_once, len(outlook.todo.jobs) or 1)
    gpu = f"{in_hours(cost.gpu_seconds)} GPU-hours" if cost.gpu_seconds else "no GPU-hours"
    wall = duration(cost.core_seconds / outlook.threads / at_once)
    yield (
        f"cost: about {in_hours(cost.core_seconds)} core-hours, {gpu}, {in_bytes(cost.disk)} of disk; "
        f"{wall} with {at_once} {'job' if at_once == 1 else 'jobs'} at once"
    )
    if cost.like:
        sources = ", ".join(f"{count} of grid '{grid}'" for grid, count in outlook.records.sources.most_common(3))
        yield f"  {cost.like} points by records of points like them ({sources})"
    if cost.guessed:
        yield f"  {cost.guessed} points by a guess, as no record is like them: {GUESS}"
