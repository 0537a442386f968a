"""What ran where: machines, commits and times, of the points of a grid and of the recorded results beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blast.errors import BlastError
from blast.experiment.report.points import PointState
from blast.experiment.run.progress import duration
from blast.files import read_json

UNKNOWN = "unknown"
# Commits of a machine that are named; of more, the others are counted.
NAMED = 4


@dataclass(frozen=True)
class Place:
    """Points that ran on one machine at one commit of the code.

    Attributes:
        machine: The name of its hardware.
        details: Name of the host and of the GPU, as far as they are known.
        code: The commit, and whether the checkout had changes.
        points: How many points.
        first: Day and time (UTC) when the first one started.
        last: When the last one ended.
        work: Their times together.
    """

    machine: str
    details: str
    code: str
    points: int
    first: str
    last: str
    work: str


def places_of(states: Iterable[PointState]) -> list[Place]:
    """Where the points of a grid ran, the machine with most points first."""
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for run in (each.run for each in states):
        if run is not None:
            details = ", ".join(str(run[key]) for key in ("host", "gpu") if run.get(key))
            key = (run.get("hardware") or UNKNOWN, details, code_of(run))
            groups.setdefault(key, []).append(run)
    places = [
        Place(
            *key,
            points=len(runs),
            first=_minute(min((run["started"] for run in runs if run.get("started")), default="")),
            last=_minute(max((run["finished"] for run in runs if run.get("finished")), default="")),
            work=duration(sum(run.get("wall_s", 0) for run in runs)),
        )
        for key, runs in groups.items()
    ]
    return sorted(places, key=lambda place: (-place.points, place.machine, place.code))


def code_of(run: Mapping[str, Any]) -> str:
    """`0123abc`, `0123abc with changes`, or that it is unknown."""
    commit = str(run.get("commit") or UNKNOWN)[:10]
    return f"{commit} with changes" if run.get("dirty") else commit


def _minute(time: str) -> str:
    """`2026-11-22 10:00` of a time in ISO format."""
    return time[:16].replace("T", " ")


@dataclass(frozen=True)
class RecordedPlace:
    """Results of one machine in `results/recorded`."""

    machine: str
    gpu: str
    runs: int
    code: str
    first: str
    last: str


def recorded_places(recorded: Path) -> list[RecordedPlace]:
    """The machines of `results/recorded`. What cannot be read is left out."""
    places = []
    for file in sorted(recorded.glob("*/runs.json")):
        try:
            values = read_json(file, "file of runs", "restore it from git.")
        except BlastError:
            continue
        runs = [run for run in values.values() if isinstance(run, dict)] if isinstance(values, dict) else []
        if runs:
            places.append(_recorded_place(file.parent.name, runs))
    return places


def _recorded_place(machine: str, runs: list[dict[str, Any]]) -> RecordedPlace:
    days = sorted(str(run["date"]) for run in runs if run.get("date"))
    codes = sorted({code_of(run) for run in runs})
    more = f" and {len(codes) - NAMED} more" if len(codes) > NAMED else ""
    gpus = sorted({str(run["gpu"]) for run in runs if run.get("gpu")})
    first, last = (days[0], days[-1]) if days else ("", "")
    return RecordedPlace(machine, ", ".join(gpus), len(runs), ", ".join(codes[:NAMED]) + more, first, last)
