"""Runs the points of a job in a child process and writes a record of each.

This process needs only the standard library; the child (`blast.experiment.run.worker`) imports torch. If the child
crashes, meets a NaN or runs out of memory, the record says `status: failed` and the rest of the grid goes on. A job
that is itself killed writes no record: the next run resumes it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from blast.errors import BlastError
from blast.experiment.plan.paths import OUTCOME, TRAINING_STATE, GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.records import provenance
from blast.experiment.records.fingerprint import fingerprint
from blast.experiment.records.record import make_record, read_record, retry_reason, write_record
from blast.experiment.run.launch import gpus_held, together, worker_command
from blast.experiment.run.locks import points_held
from blast.experiment.run.progress import progress_line
from blast.files import write_json


def finished(folder: GridFolder, point: Point) -> dict[str, Any] | None:
    """The record of a point that ran completely with these settings and this code; None if there is none."""
    file = folder.record(point.id)
    if not file.is_file():
        return None
    try:
        record = read_record(file)
    except BlastError:
        return None
    same = record["point_digest"] == point.digest and record["run"].get("fingerprint") == fingerprint(point)
    return record if same and retry_reason(record) is None else None


def _cause_of_death(returncode: int, processes: int) -> str:
    if processes > 1:
        return (
            f"one of the {processes} training processes died (the log names it), often for lack of memory, and the "
            "others were ended; run again, with a smaller 'batch' if memory ran out: it resumes from its last state."
        )
    if returncode == -signal.SIGKILL:
        return "the process was killed (signal 9), often for lack of memory; run fewer jobs at once or lower 'batch'."
    if returncode < 0:
        return f"the process died of signal {-returncode} ({signal.Signals(-returncode).name}); see the log."
    return f"the process ended with exit code {returncode}; see the log."


def _run_block(
    point: Point, points: Sequence[Point], started: str, seconds: float, outcome: dict[str, Any]
) -> dict[str, Any]:
    commit, dirty = provenance.commit()
    return {
        "wall_s": round(seconds, 3),
        "started": started,
        "finished": provenance.now(),
        "commit": commit,
        "dirty": dirty,
        "fingerprint": fingerprint(point),
        "lock": provenance.lock_digest(),
        "versions": provenance.versions(),
        "host": os.uname().nodename,
        **outcome.get("hardware", {"hardware": None, "gpu": None, "driver": None}),
        **outcome.get("run", {}),
        "threads": points[0].threads,
        "command": "python -m blast job " + " ".join(f"{point.id}.json" for point in points),
    }


def run_points(
    points: Sequence[Point], folder: GridFolder, log: Path, total: int | None = None, own_gpus: bool = False
) -> int:
    """Runs points one after the other, and writes the record of each.

    Args:
        points: The points of one job.
        folder: Folder of their grid.
        log: File for the output of the child, tracebacks included.
        total: Points of the whole grid, for the progress line.
        own_gpus: Whether each point holds a GPU alone, if there are any. Points of several processes always do.

    Returns:
        How many of them failed or were not finished; those have a record too.

    Raises:
        BlastError: if a point is given twice.
    """
    if twice := [name for name, times in Counter(point.id for point in points).items() if times > 1]:
        raise BlastError(f"the point '{twice[0]}' is given twice; give each point once.")
    with points_held(folder, [point.id for point in points]):
        return _run_held(points, folder, log, total, own_gpus)


def _run_held(points: Sequence[Point], folder: GridFolder, log: Path, total: int | None, own_gpus: bool) -> int:
    waiting = []
    failures = 0
    for point in points:
        if record := finished(folder, point):
            print(progress_line(folder, record, total, again=True), flush=True)
        else:
            waiting.append(point)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as stream:
        while waiting:
            part = together(waiting)
            with gpus_held(part[0].processes if own_gpus or part[0].processes > 1 else 0) as gpus:
                done = _run_child(part, folder, log, stream, total, gpus)
            failures += sum(retry_reason(record) is not None for record in done)
            waiting = waiting[len(done) :]
    return failures


def _run_child(
    points: Sequence[Point],
    folder: GridFolder,
    log: Path,
    stream: IO[str],
    total: int | None,
    gpus: dict[str, str],
) -> list[dict[str, Any]]:
    """Runs several points in one child and writes each record when the child has finished that point."""
    files = []
    for point in points:
        work = folder.work(point.id)
        write_json(work / "point.json", point.to_dict())
        (work / OUTCOME).unlink(missing_ok=True)
        files.append(str(work / "point.json"))
    scratch = folder.work(points[0].id) / "torchrun"
    command = worker_command(points, folder.root, files, scratch)
    environment = {
        **os.environ,
        **gpus,
        "TOKENIZERS_PARALLELISM": "false",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "PYTHONUNBUFFERED": "1",
        # A file in the working folder cannot replace a module.
        "PYTHONSAFEPATH": "1",
    }
    environment |= {"OMP_NUM_THREADS": str(points[0].threads), "MKL_NUM_THREADS": str(points[0].threads)}
    # The child ends when its standard input closes, so it does not outlive this process.
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stream, stderr=subprocess.STDOUT, env=environment)
    records: list[dict[str, Any]] = []
    started, clock = provenance.now(), time.monotonic()
    try:
        while len(records) < len(points):
            point = points[len(records)]
            outcome_file = folder.work(point.id) / OUTCOME
            ended = child.poll() is not None
            died = ended and not outcome_file.is_file()
            if not outcome_file.is_file() and not ended:
                time.sleep(0.05)
                continue
            outcome: dict[str, Any]
            if died:
                outcome = {"status": "failed", "cause": _cause_of_death(child.returncode, point.processes)}
            else:
                outcome = json.loads(outcome_file.read_text())
            run = _run_block(point, points, started, time.monotonic() - clock, outcome)
            record = make_record(
                point,
                status=outcome["status"],
                cause=outcome.get("cause"),
                result=outcome.get("result", {}),
                run=run,
                log=os.path.relpath(log, folder.root),
            )
            write_record(folder, record)
            outcome_file.unlink(missing_ok=True)
            folder.retry(point.id).unlink(missing_ok=True)
            if record["status"] == "ok":
                (folder.work(point.id) / TRAINING_STATE).unlink(missing_ok=True)
            records.append(record)
            print(progress_line(folder, record, total), flush=True)
            started, clock = provenance.now(), time.monotonic()
            if died:
                break
    finally:
        if child.poll() is None and len(records) < len(points):
            child.kill()
        elif points[0].processes > 1 and records[-1]["status"] == "ok":
            # Closing standard input would end torchrun's processes early; they end by themselves.
            with suppress(subprocess.TimeoutExpired):
                child.wait(10)
        if child.stdin:
            child.stdin.close()
        child.wait()
        shutil.rmtree(scratch, ignore_errors=True)
    return records
