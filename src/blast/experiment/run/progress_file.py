"""The progress of a point while it runs: `points/<id>/progress.jsonl`, one JSON object a line.

    {"time": 1764444000.1, "phase": "training"}
    {"time": 1764444002.7, "step": 20, "steps": 60, "loss": 2.31, "curves": {"validation_loss": 2.4}}

`time` is in seconds since 1970. `step` counts from 0, as in the curves of a record. `curves` has the values that the
record will have at this step; it is empty for a line that only tells the loss. A run that resumes writes on in the
same file, so steps may come twice: the last one counts. The file goes away when the record is there.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blast.experiment.plan.paths import PROGRESS, GridFolder

# Steps that are read for the time that is left, and bytes of the end of a file that are looked at.
LOOK_BACK, TAIL = 20, 1 << 16
# The phase whose steps are told.
TRAINING = "training"


class ProgressFile:
    """Writes the progress of a point; a full disk stops no training.

    Args:
        file: Its file.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def phase(self, name: str) -> None:
        """Notes what begins now."""
        self._write({"phase": name})

    def step(self, steps: int, step: int, loss: float, curves: Mapping[str, float]) -> None:
        """Notes a finished step.

        Args:
            steps: How many there are.
            step: Its number, from 0.
            loss: Its training loss.
            curves: The values that curves of the record have at this step.
        """
        self._write({"step": step, "steps": steps, "loss": loss, "curves": dict(curves)})

    def _write(self, entry: dict[str, Any]) -> None:
        line = json.dumps({"time": round(time.time(), 2), **entry}) + "\n"
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
    """The lines at the end of a progress file that can be read; none if there is no such file."""
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - TAIL))
            lines = stream.read().splitlines()
    except OSError:
        return
    for line in lines:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and isinstance(entry.get("time"), int | float):
            yield entry


def progress_of(folder: GridFolder, point: str, now: float | None = None) -> Progress | None:
    """How far a point is that runs; None where nothing tells.

    Args:
        folder: Folder of its grid.
        point: Its id.
        now: Seconds since 1970; None for the clock.
    """
    phase, stepped, last = "", [], None
    for last in entries(folder.work(point) / PROGRESS):
        if isinstance(last.get("phase"), str):
            phase = last["phase"]
            # Behind a resume, the time in between is no time of a step.
            stepped = [] if phase == TRAINING else stepped
        elif isinstance(last.get("step"), int) and isinstance(last.get("steps"), int):
            stepped.append(last)
    if last is None:
        return None
    age = max(0.0, (time.time() if now is None else now) - last["time"])
    if not stepped:
        return Progress(phase, 0, 0, None, None, age)
    first, final = stepped[-LOOK_BACK:][0], stepped[-1]
    done, seconds = final["step"] - first["step"], final["time"] - first["time"]
    left = (final["steps"] - final["step"] - 1) * seconds / done if done > 0 else None
    loss = final.get("loss")
    shown = loss if isinstance(loss, int | float) else None
    return Progress(phase or TRAINING, final["step"] + 1, final["steps"], shown, left, age)
