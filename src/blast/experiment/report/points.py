"""What became of each point of a grid, read without changing anything: the verdict of the report."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from blast.errors import BlastError
from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point, read_plan
from blast.experiment.records.record import read_language, read_record
from blast.experiment.run.bad_points import bad_points
from blast.experiment.run.progress import duration, headline

GOOD, BAD, FAILED, MISSING = "good", "bad", "failed", "not run"
# In the order in which the report tells them.
STATES = (FAILED, BAD, MISSING, GOOD)


@dataclass(frozen=True)
class PointState:
    """A point and what became of it.

    Attributes:
        point: Its settings.
        state: One of `STATES`.
        causes: Why it is not good, a sentence each.
        number: Its main number, such as `3.553 bits a byte`.
        took: How long it ran.
        run: Where and with what it ran: the part `run` of its record, without curves.
        dataset: Name, digest and counts of its dataset, as its record has them.
        earlier: Whether its record is of other settings than the plan has now.
    """

    point: Point
    state: str
    causes: tuple[str, ...] = ()
    number: str = ""
    took: str = ""
    run: dict[str, Any] | None = None
    dataset: dict[str, Any] | None = None
    earlier: bool = False


def states_of(folder: GridFolder) -> list[PointState]:
    """The points of a grid in the order of its plan, each with what became of it.

    Raises:
        BlastError: if the plan is missing or damaged.
    """
    points = read_plan(folder.plan)
    bad = dict(bad_points(points.values(), folder))
    return [_state(folder, point, bad.get(point.id, [])) for point in points.values()]


def _state(folder: GridFolder, point: Point, bad: list[str]) -> PointState:
    record, fault = _record(folder, point.id)
    if record is None:
        return PointState(point, FAILED if fault else MISSING, (fault,) if fault else ())
    run, result = record["run"], record["result"]
    kept = {key: value for key, value in run.items() if key not in ("training_seconds", "scoring")}
    took = duration(run["wall_s"]) if "wall_s" in run else ""
    more = (took, kept, result.get("dataset"), record["point_digest"] != point.digest)
    if record["status"] != "ok":
        return PointState(point, FAILED, (record["cause"] or "its log says why.",), "", *more)
    causes = tuple(filter(None, [result.get("unfinished"), _language_fault(folder, point.id)]))
    state = FAILED if causes else BAD if bad else GOOD
    return PointState(point, state, (*causes, *bad), headline(record), *more)


def _record(folder: GridFolder, name: str) -> tuple[dict[str, Any] | None, str]:
    """The record of a point, or else that of its last failure; and why there is none."""
    for file in (folder.record(name), folder.failed(name)):
        if file.exists() or file.is_symlink():
            try:
                return read_record(file), ""
            except BlastError as error:
                return None, str(error)
    return None, ""


def _language_fault(folder: GridFolder, name: str) -> str | None:
    """Why the language metrics of a point failed, if they are there and did."""
    if not folder.language(name).exists():
        return None
    try:
        language = read_language(folder.language(name))
    except BlastError as error:
        return str(error)
    cause: str | None = language.get("cause") if language["status"] != "ok" else None
    return cause


def verdict_of(states: list[PointState]) -> tuple[str, str]:
    """The worst state of a grid, and the sentence about it."""
    count = Counter(each.state for each in states)
    if not states:
        return MISSING, "this grid has no points"
    if count[GOOD] == len(states):
        return GOOD, "the only point is good" if len(states) == 1 else f"all {len(states)} points are good"
    told = [f"{count[state]} {state}" for state in STATES if count[state]]
    worst = next(state for state in STATES if count[state])
    return worst, f"of {len(states)} points: {', '.join(told)}"
