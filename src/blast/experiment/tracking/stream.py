"""Streams the points of a grid into MLflow while they train, and keeps the run of the grid up to date.

    python -m blast.experiment.tracking.stream --grid-dir results/default

The workflow starts one such process for a run, `blast mlflow --follow` is another. It reads what trainings tell into
`results/<grid>/live/` (`run.step_file`), so no training waits for it or for MLflow, and a cluster's compute nodes need
no network. A store that cannot be reached is told once and tried again each minute.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blast.errors import BlastError
from blast.experiment.command_end import ended
from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.run.step_file import read_lines
from blast.experiment.tracking.experiments import GRID_RUN, Experiments, GridExperiment
from blast.experiment.tracking.grid_run import complete_grid_run
from blast.experiment.tracking.live_run import make_live_run, streamed
from blast.experiment.tracking.run import log_metrics
from blast.experiment.tracking.store import open_client, tracking_uri
from blast.experiment.tracking.store_errors import store_errors
from blast.experiment.tracking.streamed_metrics import samples, steps

if TYPE_CHECKING:
    from mlflow import MlflowClient

EVERY = 2.0  # s, between two looks
AGAIN = 60.0  # s, until a store that could not be reached is tried again
OLD = 5.0  # s; a file that has not changed for so long when this process begins is of a training that was killed
FOLDER = "live_folder"


@dataclass
class _Stream:
    """A training that is followed."""

    begin: dict[str, Any]
    run: str
    offset: int = 0
    last: dict[str, int] = field(default_factory=dict)


class Streams:
    """The trainings of a grid as runs of a store.

    Args:
        folder: Folder of the grid.
        stages: Stages of its points, if a workflow runs the whole grid; without any, the points say their grid.
        uri: Address of the store, as for an import.
    """

    def __init__(self, folder: GridFolder, stages: Iterable[str] = ("train",), uri: str | None = None) -> None:
        self.folder, self.stages = folder, tuple(stages)
        grid, results = folder.root.absolute().name, folder.root.absolute().parent
        self.uri = tracking_uri(results, uri)
        self.client: MlflowClient = open_client(self.uri)
        self.experiments = Experiments(self.client, self.uri, results)
        self._attended: dict[str, GridExperiment] = {}
        with self._errors():
            for stage in self.stages:
                self._attend(self.experiments.of({"grid": grid, "stage": stage}))
        self._streams: dict[str, _Stream] = {}
        self._begun: set[str] = set()
        self._since = time.time() - OLD

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        with store_errors(self.uri):
            yield

    def _attend(self, experiment: GridExperiment) -> None:
        """Marks the run of a grid as running.

        Runs that a stream of this folder left when it was killed are ended; a training that lives is found again.
        """
        if experiment.name in self._attended:
            return
        self.client.set_tag(experiment.parent.info.run_id, f"{GRID_RUN}_live", "true")
        self.client.update_run(experiment.parent.info.run_id, status="RUNNING")
        query = f"attributes.status = 'RUNNING' AND tags.{FOLDER} = '{self._place}'"
        for run in self.client.search_runs([experiment.id], filter_string=query):
            if "record_digest" not in run.data.tags:
                self.client.set_terminated(run.info.run_id, "KILLED")
        self._attended[experiment.name] = experiment

    @property
    def _place(self) -> str:
        return str(self.folder.root.absolute()).replace("'", "_")

    def look(self) -> None:
        """Sends what trainings told since the last look.

        Raises:
            BlastError: if the store cannot be reached; the next look sends it again.
        """
        live = {file.stem: file for file in (self.folder.root / "live").glob("*.jsonl")}
        with self._errors():
            for point, file in live.items():
                with contextlib.suppress(OSError, BlastError):
                    if point in self._streams or file.stat().st_mtime >= self._since:
                        self._send(point, file)
            for point in self._streams.keys() - live.keys():
                with contextlib.suppress(OSError):
                    self._send(point, self.folder.told(point))
                del self._streams[point]

    def _send(self, point: str, file: Path) -> None:
        lines, offset = read_lines(file)
        begin = lines[0].get("begin") if lines else None
        if not isinstance(begin, dict):
            return
        stream = self._streams.get(point)
        if stream is None or stream.begin != begin:
            # A new attempt of the point, in the same run.
            found = self._begin(point, begin)
            if found is None:
                return
            stream = self._streams[point] = found
        new, offset = read_lines(file, stream.offset)
        record = self.folder.record(point)
        recorded = record.exists() and record.stat().st_mtime >= file.stat().st_mtime
        last = dict(stream.last)
        total = stream.begin.get("steps")
        found_metrics = steps(new, last, total if isinstance(total, int) else None)
        if recorded:
            # The import of the record sends the rest of the curves.
            found_metrics = [metric for metric in found_metrics if metric.key.startswith("progress/")]
        found_metrics += samples([{"begin": stream.begin}, *new])
        log_metrics(self.client, stream.run, found_metrics)
        stream.offset, stream.last = offset, last

    def _begin(self, point: str, begin: dict[str, Any]) -> _Stream | None:
        """The run of a training: the one that an earlier attempt left, else a new one."""
        settings = Point.read(self.folder.work(point) / "point.json")
        digest, host = settings.digest, str(begin.get("host"))
        if begin.get("digest") != digest:
            return None
        experiment = self.experiments.of(settings.to_dict())
        self._attend(experiment)
        runs = streamed(self.client, experiment.id, point, digest, host)
        if runs:
            run_id = runs[0].info.run_id
            self.client.update_run(run_id, status="RUNNING")
            names = [name for name in runs[0].data.metrics if name.startswith(("curves/", "progress/"))]
            histories = {name: self.client.get_metric_history(run_id, name) for name in names}
            last = {name: max(entry.step for entry in history) for name, history in histories.items()}
        else:
            parent = experiment.parent.info.run_id
            run_id, last = make_live_run(self.client, experiment.id, settings, begin, parent, {FOLDER: self._place}), {}
        self._begun.add(run_id)
        return _Stream(begin, run_id, 0, last)

    def close(self) -> None:
        """Ends the runs whose training came to no record, and completes the run of the grid."""
        with self._errors():
            for run_id in self._begun:
                run = self.client.get_run(run_id)
                if run.info.status == "RUNNING" and "record_digest" not in run.data.tags:
                    self.client.set_terminated(run_id, "KILLED")
            # Without a workflow there is no verdict, and the run of the grid is as done as its points.
            whole = not self.stages or self.folder.verdict.is_file()
            failed = any((self.folder.root / "failed").glob("*.json"))
            end = "FINISHED" if whole else "FAILED" if failed else "KILLED"
            for experiment in self._attended.values():
                run_id = experiment.parent.info.run_id
                complete_grid_run(self.client, experiment, self.folder)
                self.client.delete_tag(run_id, f"{GRID_RUN}_live")
                self.client.set_terminated(run_id, end)


def follow(folder: GridFolder, stages: Iterable[str], ends: Callable[[float], bool], say: Callable[[str], Any]) -> None:
    """Streams a grid until `ends` says so; what cannot be sent is told once, and no reason to stop.

    Args:
        folder: Folder of the grid.
        stages: Stages of its points.
        ends: Waits for so many seconds at most, and says whether to end.
        say: Prints a line.
    """
    streams, said, pause = None, "", 0.0
    while True:
        over = ends(pause)
        pause = EVERY
        try:
            streams = streams or Streams(folder, stages)
            streams.look()
            if over:
                streams.close()
        except BlastError as error:
            if str(error) != said:
                say(said := str(error))
            pause = AGAIN
        if over:
            return


def start(folder: GridFolder, stages: Iterable[str]) -> Callable[[], None]:
    """Starts a process that streams a grid, and returns what ends it. It ends by itself when this process is gone.

    `BLAST_STREAM=0` starts none.
    """
    import subprocess

    if os.environ.get("BLAST_STREAM") == "0":
        return lambda: None
    log = folder.log("stream")
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-P", "-m", "blast.experiment.tracking.stream", "--grid-dir", str(folder.root)]
    with log.open("w") as stream:
        process = subprocess.Popen(
            [*command, "--stages", *stages],
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def end() -> None:
        if process.stdin:
            process.stdin.close()
        # A store that does not answer holds nobody up; the process ends by itself.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)

    return end


def main(arguments: list[str] | None = None) -> int:
    """Streams until the standard input closes."""
    parser = argparse.ArgumentParser(
        prog="python -m blast.experiment.tracking.stream", description="Streams the points of a grid that train now."
    )
    parser.add_argument("--grid-dir", type=Path, required=True, help="folder of a grid, such as results/default")
    parser.add_argument("--stages", nargs="+", default=["train"], help="stages of its points (default: train)")
    return ended("blast", lambda: _main(parser.parse_args(arguments)), code=1)


def _main(given: argparse.Namespace) -> int:
    end = threading.Event()

    def wait_for_parent() -> None:
        while os.read(0, 4096):
            pass
        end.set()

    threading.Thread(target=wait_for_parent, daemon=True).start()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: end.set())
    # It gets the processor when nobody else wants it.
    with contextlib.suppress(OSError):
        os.nice(10)
    follow(GridFolder(given.grid_dir), given.stages, end.wait, lambda line: print(line, flush=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
