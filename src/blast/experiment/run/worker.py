"""The child process of a job: runs its points and writes `outcome.json` for each; the job makes records of them."""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from blast.errors import BlastError
from blast.experiment.command_end import system_sentence
from blast.experiment.plan.paths import OUTCOME, PROGRESS, GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.plan.rerun import rerun_command
from blast.experiment.records.fingerprint import entry_of, fingerprint
from blast.experiment.records.provenance import hardware
from blast.experiment.run.evaluate import evaluate_again
from blast.experiment.run.progress_file import ProgressFile
from blast.experiment.run.stopping import POINT_STOP
from blast.files import write_json
from blast.training.launch import rank_and_world_size

Result = dict[str, Any]
# Seconds within which torchrun, which checks ten times a second, ends the other processes of a training.
GRACE = 3.0


def _end_with_parent() -> None:
    """Ends this process when its standard input closes, because the process that started it is gone."""

    def wait() -> None:
        # Not sys.stdin: the lock of its buffer would abort this process at its normal end.
        while os.read(0, 4096):
            pass
        os._exit(3)

    threading.Thread(target=wait, daemon=True).start()


def set_up_torch(point: Point) -> None:
    """Settings of torch that decide the numbers of every point."""
    torch.set_num_threads(point.threads)
    # Some CUDA operations have no deterministic form; on a CPU all have.
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    # Filling memory takes time and changes no result.
    torch.utils.deterministic.fill_uninitialized_memory = False


def run_point(point: Point, folder: GridFolder) -> Result | None:
    """Runs a point by the function that its fingerprint starts from; evaluates it alone if that is all that changed."""
    if (again := evaluate_again(point, folder)) is not None:
        return again[0]
    module, _, name = entry_of(point).partition(":")
    run: Callable[[Point, GridFolder, str], Result | None] = getattr(import_module(module), name)
    return run(point, folder, fingerprint(point))


def _wait_for_first_failure(known: bool) -> None:
    """In a training of several processes, waits before a cause is reported, so that the right process reports it.

    If another process died, this one fails only because of that, and torchrun ends it while it waits. If all fail in
    the same way, the first process reports.

    Args:
        known: Whether the cause is an error that this project raises, or a lack of memory.
    """
    rank, processes = rank_and_world_size()
    if processes > 1 and (rank or not known):
        time.sleep(GRACE)


def _check_gpus(held: int) -> None:
    """Refuses to train on the CPU, or on a GPU of another job, where a GPU that the job holds cannot be used."""
    if held > (found := torch.cuda.device_count()):
        raise BlastError(
            f"this point holds the GPUs '{os.environ.get('CUDA_VISIBLE_DEVICES')}' and torch can use {found} of them; "
            "set CUDA_VISIBLE_DEVICES to GPUs that torch can use, or to nothing for the CPU."
        )


def outcome_of(point: Point, folder: GridFolder, gpus: int = 0) -> dict[str, Any] | None:
    """Runs one point. An exception becomes its `cause`, one sentence; the traceback goes to the log.

    Args:
        point: What to run.
        folder: Folder of its grid.
        gpus: GPUs that the job holds for it.

    Returns:
        What the job makes a record of; None in all processes but the first.
    """
    if rank_and_world_size()[0] == 0:
        print(f"== {point.id}\nagain with: {rerun_command(point, folder)}", flush=True)
        ProgressFile(folder.work(point.id) / PROGRESS).phase("timing" if point.stage == "benchmark" else "loading data")
    try:
        _check_gpus(gpus)
        set_up_torch(point)
        result = run_point(point, folder)
    except BlastError as error:
        traceback.print_exc()
        _wait_for_first_failure(known=True)
        return {"status": "failed", "cause": str(error)}
    except (MemoryError, torch.OutOfMemoryError):
        traceback.print_exc()
        _wait_for_first_failure(known=True)
        return {"status": "failed", "cause": "out of memory; use a smaller batch, or run fewer jobs at once."}
    except Exception as error:
        traceback.print_exc()
        _wait_for_first_failure(known=False)
        if sentence := system_sentence(error):
            return {"status": "failed", "cause": sentence}
        first = (str(error).splitlines() or [""])[0]
        return {"status": "failed", "cause": f"{type(error).__name__}: {first} (the log holds the traceback)."}
    return None if result is None else {"status": "ok", "run": result.pop("run", {}), "result": result}


def main(arguments: list[str] | None = None) -> int:
    """Entry of `python -m blast.experiment.run.worker`, which `blast.experiment.run.job` calls."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grid-dir", type=Path, required=True)
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("points", type=Path, nargs="+")
    parsed = parser.parse_args(arguments)
    _end_with_parent()
    POINT_STOP.listen()
    folder = GridFolder(parsed.grid_dir)
    for file in parsed.points:
        point = Point.read(file)
        outcome = outcome_of(point, folder, parsed.gpus)
        if outcome is None:
            continue
        file = folder.work(point.id) / OUTCOME
        if not file.exists():
            write_json(file, {**outcome, "hardware": hardware()})
        # The job makes a record of it, which the next point may read, and deletes it.
        while file.exists():
            time.sleep(0.01)
        POINT_STOP.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
