"""What a training tells while it runs: a small file that anyone may read, so the training waits for nobody.

`results/<grid>/live/<point>.jsonl` has one JSON value a line. The first says what runs:
`{"begin": {"point": …, "digest": …, "steps": 5000, "host": …, "pid": …, "time": …}}`. Then come steps,
`{"time": 1767323045.1, "step": 120, "loss": 2.31, "curves": {"train_loss": 2.31}}`, and system metrics,
`{"time": …, "system": {"cpu_utilization_percentage": 98.0}}`. At its end the file moves to `points/<point>/told.jsonl`;
that of a killed training stays where it is. A disk that is full ends the telling, not the training.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.run.system_metrics import SystemMetrics

Watch = Callable[[int, dict[str, float]], None]
# A file that is longer is not of ours; a day of steps has two megabytes.
LARGEST = 256 << 20


class _StepFile:
    """Writes lines, from the training and from the thread that samples, until one cannot be written."""

    def __init__(self, file: Path, begin: dict[str, Any]) -> None:
        self._file, self._lock, self._broken = file, threading.Lock(), False
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._stream = file.open("w", encoding="utf-8")
        except OSError as error:
            self._fail(error)
        else:
            self.write({"begin": begin})

    def write(self, value: dict[str, Any]) -> None:
        with self._lock:
            if self._broken:
                return
            try:
                self._stream.write(json.dumps(value) + "\n")
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._broken = True
        print(f"{self._file}: cannot be written ({error}), so nobody sees the steps of this training; it goes on.")

    def move_to(self, place: Path) -> None:
        """Ends it, and moves it to where it stays."""
        with self._lock:
            if not self._broken:
                self._broken = True
                try:
                    self._stream.close()
                    place.parent.mkdir(parents=True, exist_ok=True)
                    self._file.replace(place)
                except OSError as error:
                    print(f"{place}: cannot be written ({error}); the training goes on.")


@contextmanager
def tell_steps(point: Point, folder: GridFolder, tells: bool = True) -> Iterator[Watch | None]:
    """Tells of the training of a point while the block runs, with a sample of the system every few seconds.

    Args:
        point: What is trained.
        folder: Folder of its grid.
        tells: Whether this process tells; of several, the first does.

    Yields:
        What the training loop calls with the steps that are done and their numbers.
    """
    if not tells:
        yield None
        return
    begin = {
        "point": point.id,
        "digest": point.digest,
        "steps": (point.training or {}).get("steps"),
        "host": os.uname().nodename,
        "pid": os.getpid(),
        "time": time.time(),
    }
    file = _StepFile(folder.live(point.id), begin)

    def watch(step: int, values: dict[str, float]) -> None:
        curves = {name: value for name, value in values.items() if name != "loss"}
        more = {"curves": curves} if curves else {}
        file.write({"time": time.time(), "step": step, "loss": values["loss"], **more})

    with SystemMetrics(lambda found: file.write({"time": time.time(), "system": found})):
        yield watch
    file.move_to(folder.told(point.id))


def read_lines(file: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The whole lines of such a file from an offset on, and the offset of what comes next.

    A line that is no JSON mapping is left out, and so is one that is still being written.

    Raises:
        OSError: if the file cannot be read, or is a link.
    """
    descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    with open(descriptor, "rb") as stream:
        stream.seek(offset)
        text = stream.read(LARGEST)
    text = text[: text.rfind(b"\n") + 1]
    found = []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            found.append(value)
    return found, offset + len(text)
