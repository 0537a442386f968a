"""How far a point is while it runs: what it does now, and the last steps of its training.

`points/<id>/progress.jsonl` has a line for each thing that begins, `{"time": 1764444000.1, "phase": "training"}`; it goes
away when the record of the point is there. The steps are in the file of `run.step_file`.
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
    """Writes what a point does; a full disk stops no training.

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
        steps: Steps in all; 0 where that is not known.
        loss: Its last training loss; None before the first step.
        left: Seconds that its training takes still, at the speed of the last steps; None if that is not known.
    """

    phase: str
    step: int = 0
    steps: int = 0
    loss: float | None = None
    left: float | None = None


def _lines(file: Path, whole: bool = True) -> Iterator[dict[str, Any]]:
    """The mappings in the lines at the end of a file, or in its first line; none if there is no such file."""
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - TAIL) if whole else 0)
            lines = stream.read(TAIL).splitlines()
    except OSError:
        return
    for line in lines if whole else lines[:1]:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict):
            yield entry


def progress_of(folder: GridFolder, point: str) -> Progress | None:
    """How far a point is that runs or was killed; None where nothing tells.

    Args:
        folder: Folder of its grid.
        point: Its id.
    """
    phases = [entry["phase"] for entry in _lines(folder.work(point) / PROGRESS) if isinstance(entry.get("phase"), str)]
    if not phases:
        return None
    if phases[-1] != TRAINING:
        return Progress(phases[-1])
    stepped = [entry for entry in _lines(folder.live(point)) if _is_step(entry)]
    if not stepped:
        return Progress(TRAINING)
    begin = next((entry.get("begin") for entry in _lines(folder.live(point), whole=False)), None)
    total = begin.get("steps") if isinstance(begin, dict) else None
    steps = total if type(total) is int else 0
    first, final = stepped[-LOOK_BACK:][0], stepped[-1]
    done, seconds = final["step"] - first["step"], final["time"] - first["time"]
    left = max(0, steps - final["step"]) * seconds / done if done > 0 and steps else None
    loss = final.get("loss")
    return Progress(TRAINING, final["step"], steps, loss if isinstance(loss, int | float) else None, left)


def _is_step(entry: dict[str, Any]) -> bool:
    return type(entry.get("step")) is int and isinstance(entry.get("time"), int | float)
