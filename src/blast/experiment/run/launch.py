"""The command that starts the child process of a job. `torchrun` starts a training of several processes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from blast.experiment.plan.point import Point


def worker_command(
    points: Sequence[Point], root: Path, files: Sequence[str], scratch: Path, gpus: int = 0
) -> list[str]:
    """The command that runs points.

    Args:
        points: Points of one process each, or a single point.
        root: Folder of their grid.
        files: Their point files.
        scratch: Folder for temporary files of torchrun.
        gpus: GPUs that the job holds for them; the worker refuses to run without these.
    """
    worker = ["-m", "blast.experiment.run.worker", "--grid-dir", str(root), "--gpus", str(gpus), *files]
    if points[0].processes == 1:
        return [sys.executable, *worker]
    # No restarts: if a process dies, the others end, and the next run resumes from the last saved state.
    options = f"--standalone --local-addr localhost --nproc-per-node {points[0].processes} --max-restarts 0".split()
    return [sys.executable, "-m", "torch.distributed.run", *options, "--log-dir", str(scratch), *worker]
