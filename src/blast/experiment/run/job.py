"""Runs the points of a job in child processes and writes a record of each.

This process needs only the standard library; a child (`blast.experiment.run.worker`) imports torch. If the child
crashes, meets a NaN or runs out of memory, the record says `status: failed` and the rest of the grid goes on. A job
that is itself killed writes no record: the next run resumes it.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blast.errors import BlastError
from blast.experiment.plan.paths import PROGRESS, TRAINED, TRAINING_STATE, GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.plan.rerun import rerun_command
from blast.experiment.records import provenance
from blast.experiment.records.code_notes import note_code
from blast.experiment.records.fingerprint import fingerprint, training_fingerprint
from blast.experiment.records.put_aside import put_damaged_aside
from blast.experiment.records.record import make_record, retry_reason, write_record
from blast.experiment.records.state import Left, state_of
from blast.experiment.run.attempts import forget_attempts, no_progress
from blast.experiment.run.child import Child
from blast.experiment.run.gpus import GpuHold, gpus_in_use, visible_gpus
from blast.experiment.run.locks import points_held
from blast.experiment.run.needs import needs_to_run_again
from blast.experiment.run.progress import Progress
from blast.experiment.run.schedule import Schedule, needs_first
from blast.experiment.run.stopping import JobStop

# Seconds between two looks at the children, and between two counts of what runs on the machine.
PAUSE = 0.05
COUNT = 2.0
# Seconds that a child may take to save its training when it is told to stop.
SAVING = 600.0


def finished(folder: GridFolder, point: Point) -> dict[str, Any] | None:
    """The record of a point that ran completely with these settings and this code; None if there is none."""
    state = state_of(point, folder)
    return state.record if state.left is Left.NOTHING else None


def _made_with(point: Point, folder: GridFolder) -> dict[str, Any]:
    """What a point is run with: the code, the packages and the machine."""
    commit, dirty = provenance.commit()
    return {
        "commit": commit,
        "dirty": dirty,
        "fingerprint": fingerprint(point),
        **({"training_fingerprint": training_fingerprint(point)} if point.stage == "train" else {}),
        "lock": provenance.lock_digest(),
        "versions": provenance.versions(),
        "host": os.uname().nodename,
        "hardware": None,
        "gpu": None,
        "driver": None,
        "threads": point.threads,
        "command": rerun_command(point, folder),
    }


def _run_block(child: Child, point: Point, outcome: dict[str, Any]) -> dict[str, Any]:
    # Only where it is so: the times of a point that ran beside others are not of record.
    beside = {"side_by_side": child.at_once} if child.at_once > 1 else {}
    return {
        "wall_s": round(child.seconds, 3),
        "started": child.started,
        "finished": provenance.now(),
        **_made_with(point, child.folder),
        **outcome.get("hardware", {}),
        **outcome.get("run", {}),
        **({"gpus_held": held} if (held := child.hold.environment.get("CUDA_VISIBLE_DEVICES")) else {}),
        **beside,
        "threads": child.points[0].threads,
    }


def run_points(
    points: Sequence[Point],
    folder: GridFolder,
    log: Path,
    total: int | None = None,
    own_gpus: bool = False,
    jobs: int | None = None,
    attempt: int = 1,
) -> int:
    """Runs points, side by side if there are several GPUs, and writes the record of each.

    A point comes after those of the others whose checkpoints it needs. `run.schedule` says which run side by side.

    Args:
        points: The points of one job.
        folder: Folder of their grid.
        log: File for the output of the child, tracebacks included. Children that run side by side write a file for
            each point, in the folder `<log>-points` beside it.
        total: Points of the whole grid, for the progress lines; None counts the points of this job.
        own_gpus: Whether each point holds a GPU alone, if there are any, also where jobs run one after the other and
            for benchmarks. Points of several processes always hold theirs.
        jobs: Children at once; None for one a GPU, and 1 without GPUs.
        attempt: How often this job was started by what runs it again until it is done; see `run.attempts`.

    Returns:
        How many of them failed or were not finished; those have a record too.

    Raises:
        BlastError: if a point is given twice, points need each other or one that has not run, or there are fewer GPUs
            than `jobs`.
    """
    if twice := [name for name, times in Counter(point.id for point in points).items() if times > 1]:
        raise BlastError(f"the point '{twice[0]}' is given twice; give each point once.")
    points = needs_first(points)
    gpus = visible_gpus()
    schedule = Schedule.of(jobs, len(gpus), own_gpus)
    with points_held(folder, [point.id for point in points]) as hold:
        waiting = []
        progress = Progress(folder, len(points), total, schedule.jobs)
        for point in points:
            if record := finished(folder, point):
                progress.tell(record, again=True)
            else:
                waiting.append(point)
        # Where another process holds one of these, that one has mended it by the time the lock is free.
        hold([other.id for other, _ in needs_to_run_again(waiting, folder)])
        mended = needs_to_run_again(waiting, folder)
        for other, fault in mended:
            print(f"{other.id}: {fault}, so it runs again before what needs it", flush=True)
        waiting = needs_first([*(other for other, _ in mended), *waiting])
        for point in waiting:
            put_damaged_aside(folder, point.id)
        job = _Job(waiting, folder, log, progress, schedule, gpus)
        if sentence := no_progress(points, waiting, folder, attempt):
            job.fail_first(sentence)
        with job.stop.listening():
            failures = job.run()
        if not failures:
            forget_attempts(points, folder)
    job.stop.end()
    return failures


class _Job:
    """Points that are run now; a single thread looks after all children.

    Args:
        waiting: The points, as `needs_first` orders them.
        folder: Folder of their grid.
        log: See `run_points`.
        progress: Tells of each point that is finished.
        schedule: How they share the machine.
        gpus: The GPUs, as `visible_gpus` gives them.
    """

    def __init__(
        self,
        waiting: list[Point],
        folder: GridFolder,
        log: Path,
        progress: Progress,
        schedule: Schedule,
        gpus: Sequence[str],
    ) -> None:
        self.waiting, self.folder, self.log, self.progress = waiting, folder, log, progress
        self.schedule, self.gpus = schedule, gpus
        self.children: list[Child] = []
        self.failures = 0
        self.stop = JobStop()
        self.logs = schedule.jobs > 1 and len(waiting) > 1
        self._order = {point.id: place for place, point in enumerate(waiting)}
        # The next child, while it waits for GPUs that other jobs hold.
        self._next: tuple[list[Point], GpuHold] | None = None
        self._tries = 0
        self._counted = time.monotonic()

    def run(self) -> int:
        """Runs them all. Returns how many of them failed or were not finished."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.write_text("")
        try:
            while self.waiting or self.children:
                if self.stop.asked:
                    self._end_early()
                    break
                while self._start_one():
                    pass
                if not any(self._look_after(child) for child in self.children.copy()):
                    time.sleep(PAUSE)
                if time.monotonic() - self._counted > COUNT:
                    self._count()
        finally:
            for child in self.children:
                child.kill()
            for child in self.children:
                child.close()
            if self._next:
                self._next[1].release()
        return self.failures

    def fail_first(self, cause: str) -> None:
        """Writes a failed record of the first point instead of running it."""
        point = self.waiting.pop(0)
        now = provenance.now()
        run = {"wall_s": 0.0, "started": now, "finished": now, **_made_with(point, self.folder)}
        log = os.path.relpath(self.log, self.folder.root)
        record = make_record(point, status="failed", cause=cause, result={}, run=run, log=log)
        write_record(self.folder, record)
        self.failures += 1
        self.progress.tell(record)

    def _end_early(self) -> None:
        """Lets the children save and end; what one has just finished gets its record."""
        deadline = time.monotonic() + SAVING
        for child in self.children:
            child.stop()
        left = len(self.waiting) + sum(len(child.left) for child in self.children)
        # Those that hang are killed at the end of `run`.
        while self.children and time.monotonic() < deadline:
            for child in self.children.copy():
                if child.has_outcome:
                    left -= self._look_after(child)
                elif child.gone:
                    self.children.remove(child)
                    child.close()
            time.sleep(PAUSE)
        name = signal.Signals(self.stop.asked).name
        print(
            f"stopped by {name}: {left} {'point' if left == 1 else 'points'} left; their training states are saved, "
            "and the same command goes on from there",
            flush=True,
        )

    def _start_one(self) -> bool:
        """Starts the next child if it can start now."""
        if self._next is None:
            part = self.schedule.next(self.waiting, [child.left for child in self.children])
            if not part:
                return False
            self._next = part, GpuHold(self.gpus, self.schedule.gpus_of(part[0]))
        part, hold = self._next
        if not hold.take():
            self._tries += 1
            # Not at the first try: another job may be looking at the locks just now.
            if self._tries == 3:
                print(f"waiting for {hold.missing} of {hold.count} GPUs, which other jobs hold", flush=True)
            return False
        log = self._log_of(part, hold)
        started = {point.id for point in part}
        self.waiting = [point for point in self.waiting if point.id not in started]
        self.children.append(Child(part, self.folder, log, hold))
        self._next, self._tries = None, 0
        self._count()
        return True

    def _count(self) -> None:
        """Counts what runs on the machine now: the children of this job, and one on each GPU that others hold."""
        holds = [child.hold for child in self.children] + ([self._next[1]] if self._next else [])
        ours = sum(len(hold.held) for hold in holds)
        now = len(self.children) + (gpus_in_use(self.gpus) - ours if ours else 0)
        for child in self.children:
            child.at_once = max(child.at_once, now)
        self._counted = time.monotonic()

    def _log_of(self, part: Sequence[Point], hold: GpuHold) -> Path:
        """The log of a child; the log of the job says where it is."""
        if not self.logs:
            return self.log
        log = self.log.parent / f"{self.log.stem}-points" / f"{part[0].id}.log"
        log.parent.mkdir(exist_ok=True)
        log.write_text("")
        where = f"GPU {gpus}" if (gpus := ", ".join(hold.held)) else "the CPU"
        with self.log.open("a") as stream:
            stream.write(f"{provenance.now()} {part[0].id}: starts on {where}, log {log}\n")
        return log

    def _look_after(self, child: Child) -> bool:
        """Writes the record of the point that a child has finished. Returns whether there was one."""
        outcome = child.outcome()
        if outcome is None:
            return False
        self._count()
        point = child.left[0]
        record = make_record(
            point,
            status=outcome["status"],
            cause=outcome.get("cause"),
            result=outcome.get("result", {}),
            run=_run_block(child, point, outcome),
            log=os.path.relpath(child.log, self.folder.root),
        )
        write_record(self.folder, record)
        self.folder.retry(point.id).unlink(missing_ok=True)
        (self.folder.work(point.id) / PROGRESS).unlink(missing_ok=True)
        note_code(self.folder, point)
        good = record["status"] == "ok"
        if good:
            for name in (TRAINING_STATE, TRAINED):
                (self.folder.work(point.id) / name).unlink(missing_ok=True)
        child.go_on(good)
        self.failures += retry_reason(record) is not None
        self.progress.tell(record)
        if child.ended or not child.left:
            self.children.remove(child)
            child.close()
            # Of a child that died, the other points run in a new one.
            self.waiting = sorted([*child.left, *self.waiting], key=lambda point: self._order[point.id])
        return True
