"""How the child process of a job is started: its command and the GPUs that it holds.

Needs only the standard library. `torchrun` starts a training of several processes, one process per GPU.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import takewhile
from pathlib import Path

from blast.experiment.plan.point import Point
from blast.files import file_lock


def together(points: Sequence[Point]) -> list[Point]:
    """The first points that one child runs: several if each needs one process, else a single point."""
    return list(takewhile(lambda point: point.processes == 1, points)) or list(points[:1])


def worker_command(points: Sequence[Point], root: Path, files: Sequence[str], scratch: Path) -> list[str]:
    """The command that runs points.

    Args:
        points: As `together` gives them.
        root: Folder of their grid.
        files: Their point files.
        scratch: Folder for temporary files of torchrun.
    """
    worker = ["-m", "blast.experiment.run.worker", "--grid-dir", str(root), *files]
    if points[0].processes == 1:
        return [sys.executable, *worker]
    # No restarts: if a process dies, the others end, and the next run resumes from the last saved state.
    options = f"--standalone --local-addr localhost --nproc-per-node {points[0].processes} --max-restarts 0".split()
    return [sys.executable, "-m", "torch.distributed.run", *options, "--log-dir", str(scratch), *worker]


def visible_gpus() -> list[str]:
    """The GPUs that jobs see, as `CUDA_VISIBLE_DEVICES` names them; found without torch."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    return [str(number) for number, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]


@contextmanager
def gpus_held(count: int) -> Iterator[dict[str, str]]:
    """Locks GPUs for one job; waits until enough of them are free.

    Args:
        count: How many; 0 holds none.

    Yields:
        Environment variables that show the child these GPUs alone; none if the machine has too few.
    """
    names = visible_gpus()
    if not 0 < count <= len(names):
        yield {}
        return
    folder = Path(tempfile.gettempdir()) / f"blast-gpus-{os.getuid()}"
    with ExitStack() as held:
        taken: list[str] = []
        told = False
        # One job at a time collects GPUs, so that no two jobs wait for each other.
        with file_lock(folder / "gathering.lock"):
            while True:
                for name in names:
                    if name not in taken and len(taken) < count:
                        lock = file_lock(folder / f"{name.replace('/', '_')}.lock")
                        try:
                            lock.acquire(blocking=False)
                        except TimeoutError:
                            continue
                        held.callback(lock.release)
                        taken.append(name)
                if len(taken) == count:
                    break
                if not told:
                    print(f"waiting for {count - len(taken)} of {count} GPUs, which other jobs hold", flush=True)
                    told = True
                time.sleep(0.5)
        yield {"CUDA_VISIBLE_DEVICES": ",".join(taken)}
