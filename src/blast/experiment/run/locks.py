"""Locks on grids and points. The system releases them when their process dies, so a kill leaves none behind."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

from blast.errors import BlastError
from blast.experiment.plan.paths import GridFolder
from blast.files import FileLock

# A lock that nothing refers to is released.
_HELD: list[FileLock] = []


def hold_grid(folder: GridFolder) -> None:
    """Locks a grid until this process ends, so that no two runs of the workflow write the same files.

    Raises:
        BlastError: if another run holds it; names its process.
    """
    file = folder.root / ".lock"
    lock = FileLock(file)
    try:
        _acquire_soon(lock)
    except TimeoutError as error:
        raise BlastError(
            f"{folder.root}: process {file.read_text().strip() or 'unknown'} is already running this grid; "
            "wait for it or stop it, then run again."
        ) from error
    # Written in place: a file of the same name that replaced it would be another lock.
    file.write_text(f"{os.getpid()} of {os.uname().nodename}")
    _HELD.append(lock)


def _acquire_soon(lock: FileLock) -> None:
    """Takes a lock; whoever only asks whether it is held has it for a moment."""
    for _ in range(10):
        with suppress(TimeoutError):
            return lock.acquire(blocking=False)
        time.sleep(0.05)
    return lock.acquire(blocking=False)


@contextmanager
def points_held(folder: GridFolder, points: Sequence[str]) -> Iterator[Callable[[Sequence[str]], None]]:
    """Locks points while they run; waits if a process that survived a killed workflow still runs one of them.

    Yields:
        A function that locks more of them, until the same end.
    """
    with ExitStack() as stack:
        held: set[str] = set()

        def hold(names: Sequence[str]) -> None:
            for name in sorted({*names} - held):
                lock = FileLock(folder.work(name) / ".lock")
                try:
                    lock.acquire(blocking=False)
                except TimeoutError:
                    print(f"{name}: another process runs it, waiting for its record", flush=True)
                    lock.acquire()
                stack.callback(lock.release)
                held.add(name)

        hold(points)
        yield hold


def is_held(folder: GridFolder, point: str | None = None) -> bool:
    """Whether a process runs a point now; without a point, whether one runs the grid.

    Only looks: the lock is shared for a moment, and its file stays as it is.
    """
    try:
        descriptor = os.open((folder.root if point is None else folder.work(point)) / ".lock", os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # a filesystem without locks
    finally:
        os.close(descriptor)
    return False
