"""Starts one process for each GPU, lets them work together, and brings back what the first one found."""

from __future__ import annotations

import json
import os
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException, spawn

from blast.errors import BlastError
from blast.files import write_atomically
from blast.tensor_parallel.processes import LostProcessError, Processes

# What each process runs: with all processes, its device, and what was given to `run_together`.
Job = Callable[[Processes, torch.device, dict[str, Any]], Any]
FOUND, FAULT = "found.json", "fault.json"
# Kinds of errors, the cause of the others first: a process that is waited for is lost only because of another error.
KINDS = ("sentence", "fault", "lost")


def run_together(job: Job, size: int, given: dict[str, Any], seconds: float) -> Any:
    """Runs a job in several processes, each with a GPU of its own, or on the CPU if there is none.

    Args:
        job: A function of a module, so that new processes can import it. What it returns in the first process is JSON.
        size: The number of processes; at most the number of GPUs, if there are any.
        given: What the job gets, JSON.
        seconds: How long a process waits for the others at one place.

    Returns:
        What the first process returned.

    Raises:
        BlastError: that of a process, or if a process ended without one.
        RuntimeError: with the traceback of any other error.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            spawn(_work, (job, size, given, seconds, folder), nprocs=size, daemon=True)
        except (ProcessRaisedException, ProcessExitedException) as error:
            files = sorted(Path(folder).glob(f"*.{FAULT}"))
            faults = [json.loads(file.read_text(encoding="utf-8")) for file in files]
            for kind, text in sorted(faults, key=lambda fault: KINDS.index(fault[0])):
                if kind == "fault":
                    raise RuntimeError(text) from None
                raise BlastError(text) from None
            raise BlastError(
                f"a process of {size} ended without a message ({str(error).splitlines()[0]}); look at its output, and "
                "run the point again."
            ) from error
        return json.loads(Path(folder, FOUND).read_text(encoding="utf-8"))


def _work(rank: int, job: Job, size: int, given: dict[str, Any], seconds: float, folder: str) -> None:
    gpus = torch.cuda.is_available()
    device = torch.device("cuda", rank) if gpus else torch.device("cpu")
    if gpus:
        torch.cuda.set_device(device)
    else:
        # The processes share the cores.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // size))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if gpus else "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=seconds),
    )
    fault: tuple[str, str] | None = None
    try:
        found = job(Processes(dist.group.WORLD if size > 1 else None, rank, size), device, given)
    except LostProcessError as error:
        fault = "lost", str(error)
    except BlastError as error:
        fault = "sentence", str(error)
    except Exception:
        fault = "fault", traceback.format_exc()
    if fault is not None:
        # Whole or not at all: the first process that ends has the others killed, also while they write theirs.
        write_atomically(Path(folder, f"{rank}.{FAULT}"), json.dumps(fault))
        os._exit(1)  # a group whose processes have gone cannot be destroyed
    if rank == 0:
        write_atomically(Path(folder, FOUND), json.dumps(found))
    dist.destroy_process_group()
