"""The child process of a job, seen from the job: it runs points one after the other and hands over each outcome."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from blast.experiment.plan.paths import OUTCOME, PROGRESS, TRAINING_STATE, GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.records import provenance
from blast.experiment.run.gpus import GpuHold
from blast.experiment.run.launch import worker_command
from blast.experiment.run.stopping import STOPPED_EARLY
from blast.files import write_json


class Child:
    """A process that runs `points`. It ends when this process ends, as its standard input closes then.

    Args:
        points: As `Schedule.next` gives them.
        folder: Folder of their grid.
        log: File for its output; written to the end.
        hold: The GPUs that it shows its points; given back by `close`.

    Attributes:
        left: The points without an outcome; the first of them runs now.
        ended: Whether the process is gone although points are left.
        started: When the first of them began, UTC.
        at_once: The most points that were seen to run at once while this one ran, this one included.
    """

    def __init__(self, points: Sequence[Point], folder: GridFolder, log: Path, hold: GpuHold) -> None:
        self.points, self.left, self.ended = tuple(points), list(points), False
        self.folder, self.log, self.hold = folder, log, hold
        files = []
        for point in points:
            work = folder.work(point.id)
            write_json(work / "point.json", point.to_dict())
            (work / OUTCOME).unlink(missing_ok=True)
            if not (work / TRAINING_STATE).exists():
                (work / PROGRESS).unlink(missing_ok=True)
            files.append(str(work / "point.json"))
        self._good = False
        self._scratch = folder.work(points[0].id) / "torchrun"
        threads = str(points[0].threads)
        environment = {
            **os.environ,
            **hold.environment,
            "TOKENIZERS_PARALLELISM": "false",
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
            "PYTHONUNBUFFERED": "1",
            # A file in the working folder cannot replace a module.
            "PYTHONSAFEPATH": "1",
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
        }
        command = worker_command(points, folder.root, files, self._scratch, len(hold.held))
        with log.open("a") as stream:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=stream, stderr=subprocess.STDOUT, env=environment
            )
        self._begin()

    def _begin(self) -> None:
        self.started, self._clock, self.at_once = provenance.now(), time.monotonic(), 1

    @property
    def seconds(self) -> float:
        """Seconds since the first of the points that are left began."""
        return time.monotonic() - self._clock

    def outcome(self) -> dict[str, Any] | None:
        """The outcome of the first point that is left, once it is there; a death of the process is one too."""
        file = self.folder.work(self.left[0].id) / OUTCOME
        ended = self._process.poll() is not None
        if file.is_file():
            outcome: dict[str, Any] = json.loads(file.read_text())
            return outcome
        if not ended:
            return None
        self.ended = True
        return {"status": "failed", "cause": _cause_of_death(self._process.returncode, self.left[0].processes)}

    def go_on(self, good: bool) -> None:
        """Tells the process that the record of the first point is written, so that it goes on to the next.

        Args:
            good: Whether that point ran to its end.
        """
        point, self._good = self.left.pop(0), good
        (self.folder.work(point.id) / OUTCOME).unlink(missing_ok=True)
        self._begin()

    @property
    def has_outcome(self) -> bool:
        """Whether the process wrote the outcome of the first point that is left."""
        return (self.folder.work(self.left[0].id) / OUTCOME).is_file()

    @property
    def gone(self) -> bool:
        """Whether the process ended and left no outcome."""
        return self._process.poll() is not None and not self.has_outcome

    def stop(self) -> None:
        """Tells the process to save the state of its training and to end."""
        if self._process.poll() is None:
            self._process.terminate()

    def kill(self) -> None:
        """Stops the process if points are left; their training states are kept."""
        if self.left and self._process.poll() is None:
            self._process.kill()

    def close(self) -> None:
        """Waits for the end of the process, and gives its GPUs back."""
        if not self.left and self._good and self.points[0].processes > 1:
            # Closing standard input would end torchrun's processes early; they end by themselves.
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait()
        shutil.rmtree(self._scratch, ignore_errors=True)
        self.hold.release()


def _cause_of_death(returncode: int, processes: int) -> str:
    if processes > 1:
        return (
            f"one of the {processes} training processes died (the log names it), often for lack of memory, and the "
            "others were ended; run again, with a smaller 'batch' if memory ran out: it resumes from its last state."
        )
    if returncode == STOPPED_EARLY:
        return "the process was told to stop (signal 15); run again: it resumes from its last state."
    if returncode == -signal.SIGKILL:
        return "the process was killed (signal 9), often for lack of memory; run fewer jobs at once or lower 'batch'."
    if returncode < 0:
        return f"the process died of signal {-returncode} ({signal.Signals(-returncode).name}); see the log."
    return f"the process ended with exit code {returncode}; see the log."
