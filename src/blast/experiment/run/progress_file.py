"""How far a point is while it runs: its phase, in `points/<id>/progress.jsonl`, and the steps of `run.step_file`.

    {"time": 1764444000.1, "phase": "training"}

`time` is in seconds since 1970. A run that resumes writes on in the same file. It goes away when the record is there.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blast.experiment.plan.paths import PROGRESS, GridFolder

# Steps that are read for the time that is left, and bytes of the end of a file that are looked at.
LOOK_BACK, TAIL = 20, 1 << 16
# The phase whose steps are told.
TRAINING = "training"


class ProgressFile:
    """Writes the phases of a point; a full disk stops no training.

    Args:
        file: Its file.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def phase(self, name: str) -> None:
        """Notes what begins now."""
        line = json.dumps({"time": round(time.time(), 2), "phase": name}) + "\n"
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write(line)
        except OSError:
            pass


@dataclass(frozen=True)
class Progress:
    """How far a point is.

    Attributes:
        phase: What it does now, such as `training`.
        step: Steps that are finished; 0 before the first.
        steps: Steps in all; 0 where there are none.
        loss: Its last training loss; None before the first step.
        left: Seconds that its training takes still, at the speed of the last steps; None if that is not known.
        age: Seconds since it wrote the last time.
    """

    phase: str
    step: int
    steps: int
    loss: float | None
    left: float | None
    age: float


def entries(file: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file that can be read: the first, and those at its end; none if there is no such file."""
    try:
        with file.open("rb") as stream:
            lines = [stream.readline(TAIL)]
            stream.seek(max(stream.tell(), os.fstat(stream.fileno()).st_size - TAIL))
            lines += stream.read().splitlines()
    except OSError:
        return
    for line in lines:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict):
            yield entry


def progress_of(folder: GridFolder, point: str, now: float | None = None) -> Progress | None:
    """How far a point is that runs; None where nothing tells.

    Args:
        folder: Folder of its grid.
        point: Its id.
        now: Seconds since 1970; None for the clock.
    """
    phases = [each for each in entries(folder.work(point) / PROGRESS) if isinstance(each.get("phase"), str)]
    phases = [each for each in phases if _number(each.get("time"))]
    if not phases:
        return None
    phase, wrote, trains = phases[-1]["phase"], phases[-1]["time"], any(each["phase"] == TRAINING for each in phases)
    steps, stepped = 0, []
    for file in (folder.live(point), folder.told(point)) if trains else ():
        lines = list(entries(file))
        begin = lines[0].get("begin") if lines else None
        # A file of an earlier training says nothing of this one.
        if isinstance(begin, dict) and _number(begin.get("time")) and begin["time"] >= phases[0]["time"] - 1:
            steps = begin["steps"] if isinstance(begin.get("steps"), int) else 0
            stepped = [each for each in lines if isinstance(each.get("step"), int) and _number(each.get("time"))]
            break
    wrote = max([wrote, *(each["time"] for each in stepped[-1:])])
    age = max(0.0, (time.time() if now is None else now) - wrote)
    if not stepped:
        return Progress(phase, 0, 0, None, None, age)
    first, final = stepped[-LOOK_BACK:][0], stepped[-1]
    done, seconds = final["step"] - first["step"], final["time"] - first["time"]
    left = (steps - final["step"]) * seconds / done if done > 0 else None
    loss = final.get("loss") if _number(final.get("loss")) else None
    return Progress(phase, final["step"], steps, loss, left, age)


def _number(value: object) -> bool:
    return isinstance(value, int | float)
