"""Compiles the kernels of many configs in parallel: processes run each on a tiny problem to fill Triton's cache."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import NamedTuple

import torch
from blast_kernels.mlp_inference.heuristics import KernelConfig

# One kernel takes one to three seconds. If all together take longer than this, one hangs.
SECONDS = 240.0


class Job(NamedTuple):
    """A kernel to compile: a config and everything else that the kernel is specialised on."""

    config: KernelConfig
    gate: str
    activation: str
    bias: bool
    block: tuple[int, int]
    dtype: torch.dtype


_pool: ProcessPoolExecutor | None = None
_known: dict[Job, str | None] = {}
_lost = False


def compile_all(jobs: Iterable[Job]) -> dict[Job, str | None]:
    """Compiles all jobs; gives the error of each, or None if none is known. Results of earlier calls are reused.

    The processes stay for the next call. On a machine with two processors or fewer, nothing is compiled here.
    """
    jobs = list(dict.fromkeys(jobs))
    waiting = [job for job in jobs if job not in _known]
    cores = len(os.sched_getaffinity(0))
    if waiting and cores > 2:
        _known.update(_compiled(waiting, cores - 1))
    return {job: _known.get(job) for job in jobs}


def _compiled(jobs: list[Job], processes: int) -> dict[Job, str | None]:
    global _pool
    if _pool is None:
        context = multiprocessing.get_context("spawn")
        _pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_end_with_parent)
    found: dict[Job, str | None] = {}
    end = time.monotonic() + SECONDS
    try:
        running = {job: _pool.submit(compile_one, job) for job in jobs}
        for job, future in running.items():
            try:
                found[job] = future.result(timeout=max(0.0, end - time.monotonic()))
            except TimeoutError:
                found[job] = f"it was not compiled and run within {SECONDS:.0f} s"
    except BrokenProcessPool:
        # One job ended its process. The parent runs all jobs that have no result yet.
        _pool = None
    if time.monotonic() >= end:
        for process in multiprocessing.active_children():
            process.kill()
        _pool = None
    return found


def compile_one(job: Job) -> str | None:
    """Compiles a job and runs it on two block rows; gives its error in one line, or None."""
    global _lost
    if _lost:
        return None
    try:
        _launch(job)
        torch.cuda.synchronize()
    except Exception as fault:  # a compiler may raise anything
        try:
            torch.cuda.synchronize()
        except Exception:
            # This process has lost its device and cannot test later jobs.
            _lost = True
        return f"{type(fault).__name__}: {(str(fault).splitlines() or [''])[0]}"[:300]
    return None


def _launch(job: Job) -> None:
    from blast_kernels.mlp_inference.launch import product
    from blast_kernels.mlp_inference.row_lists import plain_row_list

    b_out, b_in = job.block
    device = torch.device("cuda", torch.cuda.current_device())
    x = torch.zeros(job.config.tile, 2 * b_in, device=device, dtype=job.dtype)
    values, up = (torch.zeros(4, b_out, b_in, device=device, dtype=job.dtype) for _ in range(2))
    row_list = plain_row_list(torch.tensor([0, 2, 4], device=device), torch.tensor([0, 1, 0, 1], device=device))
    bias = torch.zeros(2 * b_out, device=device, dtype=job.dtype) if job.bias else None
    y = torch.empty(job.config.tile, 2 * b_out, device=device, dtype=job.dtype)
    product(x, values, row_list, bias, y, job.activation, job.gate, job.config, up=None if job.gate == "none" else up)


def _end_with_parent() -> None:
    """Ends this process when its parent has ended, even if the parent was killed."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(3)

    threading.Thread(target=watch, daemon=True).start()
