"""Locks that the kernel lets go of when their holder dies, so that a kill never leaves one behind."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO

from blast.errors import BlastError
from blast.experiment.plan.paths import GridFolder

_HELD: list[IO[str]] = []


def hold_grid(folder: GridFolder) -> None:
    """Holds a grid until this process ends, so that no two runs of the workflow make the same files.

    Raises:
        BlastError: if another run holds it, with the number of its process.
    """
    folder.root.mkdir(parents=True, exist_ok=True)
    stream = (folder.root / ".lock").open("a+")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        stream.seek(0)
        raise BlastError(
            f"{folder.root}: process {stream.read().strip() or 'unknown'} is already running this grid; "
            "wait for it or stop it, then run again."
        ) from error
    stream.truncate(0)
    stream.write(str(os.getpid()))
    stream.flush()
    _HELD.append(stream)


def grid_is_free(folder: GridFolder) -> bool:
    """Whether no run of the workflow holds a grid now."""
    try:
        with (folder.root / ".lock").open() as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


@contextmanager
def points_held(folder: GridFolder, points: Sequence[str]) -> Iterator[None]:
    """Holds points while they run; waits where what a killed workflow left behind still runs one of them."""
    with ExitStack() as stack:
        for name in sorted(points):
            work = folder.work(name)
            work.mkdir(parents=True, exist_ok=True)
            stream = stack.enter_context((work / ".lock").open("w"))
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                print(f"{name}: another process is at it, waiting for its record", flush=True)
                fcntl.flock(stream, fcntl.LOCK_EX)
        yield
