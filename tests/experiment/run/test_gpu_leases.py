"""Leases of GPUs by jobs that know nothing of each other, as Snakemake starts them side by side. The GPUs are names."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from patience import PATIENCE, wait_until
from test_side_by_side import benchmark, machine, overlap, point, spans  # noqa: F401

from blast.experiment.plan.paths import GridFolder
from blast.experiment.run import job as running_job
from blast.experiment.run.gpus import GpuHold, gpus_in_use, visible_gpus
from blast.experiment.run.job import run_points

HOLDER = """
import sys, tempfile, time
tempfile.tempdir = {folder!r}
from blast.experiment.run.gpus import GpuHold
hold = GpuHold({names!r}, 1)
assert hold.take()
print(hold.held[0], flush=True)
time.sleep({seconds})
"""


@pytest.fixture(autouse=True)
def one_code(monkeypatch) -> None:
    """The code is read by one thread at a time."""
    monkeypatch.setattr(running_job, "training_fingerprint", lambda point: "code")


def holder(names: list[str]) -> tuple[subprocess.Popen, str]:
    """A process that holds one of the GPUs, and which."""
    code = HOLDER.format(folder=tempfile.gettempdir(), names=names, seconds=PATIENCE)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline().strip()


def beside(grid: GridFolder, name: str, *points, **options) -> threading.Thread:
    """A job of its own, in a thread."""
    job = threading.Thread(target=run_points, args=(list(points), grid, grid.root / f"{name}.log"), kwargs=options)
    job.start()
    return job


def test_a_killed_holder_leaves_its_gpu_free(machine):  # noqa: F811
    first, gpu = holder(visible_gpus())
    assert gpus_in_use(visible_gpus()) == 1
    second = GpuHold(visible_gpus(), 1)
    assert second.take()
    assert {gpu, *second.held} == {"5", "GPU-7"}
    third = GpuHold(visible_gpus(), 1)
    assert not third.take()
    first.send_signal(signal.SIGKILL)
    first.wait(PATIENCE)
    assert third.take()
    assert third.held == [gpu]
    for hold in (second, third):
        hold.release()
    assert gpus_in_use(visible_gpus()) == 0


def test_jobs_that_start_at_once_hold_different_gpus_and_a_third_waits(machine):  # noqa: F811
    # As the rule `point` starts them where there are several GPUs.
    own = {"jobs": 1, "own_gpus": True}
    jobs = [
        beside(machine, "a", point("a", meets="b", seconds=0.2), **own),
        beside(machine, "b", point("b", meets="a", seconds=0.2), **own),
    ]
    wait_until(lambda: (machine.root / "journal.txt").is_file() and len(spans(machine)) == 2)
    jobs.append(beside(machine, "c", point("c"), **own))
    for job in jobs:
        job.join(PATIENCE)
    ran = spans(machine)
    assert {ran["a"][2], ran["b"][2]} == {"5", "GPU-7"}
    (same,) = [name for name in "ab" if ran[name][2] == ran["c"][2]]
    assert not overlap(ran[same], ran["c"])


def test_a_benchmark_of_the_workflow_waits_for_all_gpus_and_keeps_others_away(machine):  # noqa: F811
    first, _ = holder(visible_gpus())
    timed = beside(machine, "timed", benchmark("b0"), benchmark("b1"), jobs=1)
    wait_until(lambda: gpus_in_use(visible_gpus()) == 2, "the second GPU to be held")
    assert not (machine.root / "journal.txt").exists()
    trained = beside(machine, "trained", point("t0"), jobs=1, own_gpus=True)
    first.kill()
    first.wait(PATIENCE)
    for job in (timed, trained):
        job.join(PATIENCE)
    ran = spans(machine)
    assert ran["b0"][2] == ran["b1"][2] == "5,GPU-7"
    assert not any(overlap(ran["t0"], ran[name]) for name in ("b0", "b1"))


@pytest.mark.parametrize("number", ["17", "not a number", ""])
def test_each_job_of_slurm_has_leases_of_its_own(machine, monkeypatch, number):  # noqa: F811
    """Slurm calls the first GPU of every job 0, whichever it is."""
    ours = GpuHold(visible_gpus(), 2)
    assert ours.take()
    monkeypatch.setenv("SLURM_JOB_ID", number)
    other = GpuHold(visible_gpus(), 2)
    assert other.take() == (number == "17")
    folders = {folder.name for folder in Path(tempfile.gettempdir()).glob("blast-gpus-*")}
    assert folders == {f"blast-gpus-{os.getuid()}", *([f"blast-gpus-{os.getuid()}-slurm-17"] if number == "17" else [])}
    for hold in (ours, other):
        hold.release()
