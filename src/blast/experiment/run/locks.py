"""Locks on grids and points. The system releases them when their process dies, so a kill leaves none behind."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from blast.errors import BlastError
from blast.experiment.plan.paths import GridFolder
from blast.files import file_lock

if TYPE_CHECKING:
    from filelock import BaseFileLock

# A lock that nothing refers to is released.
_HELD: list[BaseFileLock] = []


def hold_grid(folder: GridFolder) -> None:
    """Locks a grid until this process ends, so that no two runs of the workflow write the same files.

    Raises:
        BlastError: if another run holds it; names its process.
    """
    file = folder.root / ".lock"
    lock = file_lock(file)
    try:
        lock.acquire(blocking=False)
    except TimeoutError as error:
        raise BlastError(
            f"{folder.root}: process {file.read_text().strip() or 'unknown'} is already running this grid; "
            "wait for it or stop it, then run again."
        ) from error
    # Written in place: a file of the same name that replaced it would be another lock.
    file.write_text(str(os.getpid()))
    _HELD.append(lock)


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
                lock = file_lock(folder.work(name) / ".lock")
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
    """Whether a process runs a point now; without a point, whether one runs the grid."""
    file = (folder.root if point is None else folder.work(point)) / ".lock"
    if not file.is_file():
        return False
    lock = file_lock(file)
    try:
        lock.acquire(blocking=False)
    except TimeoutError:
        return True
    except OSError:
        return False  # of another user, or on a disk that only reads
    lock.release()
    return False
