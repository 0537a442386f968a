from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys

import pytest
from patience import PATIENCE

from blast.errors import BlastError
from blast.experiment.plan.paths import GridFolder
from blast.experiment.run.locks import hold_grid, points_held


def holder(tmp_path) -> subprocess.Popen:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from blast.experiment.run.locks import hold_grid\n"
        "from blast.experiment.plan.paths import GridFolder\n"
        f"hold_grid(GridFolder(Path({str(tmp_path)!r})))\n"
        f"print('held', flush=True); time.sleep({PATIENCE})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_run_of_a_grid_is_refused_and_a_killed_one_leaves_no_lock(tmp_path):
    first = holder(tmp_path)
    with pytest.raises(BlastError, match=f"process {first.pid} of .+ is already running this grid"):
        hold_grid(GridFolder(tmp_path))
    first.kill()
    first.wait(PATIENCE)
    hold_grid(GridFolder(tmp_path))
    assert (tmp_path / ".lock").read_text() != str(first.pid)


@pytest.mark.fault(
    fault="The shared filesystem has no locks (Lustre without `-o flock`, NFS without its lock service).",
    topic="Clusters",
    happens="Nothing starts. With `BLAST_LOCKS=off` it goes on without locks.",
    reads=(
        "…: this filesystem has no locks (…); mount it with them (Lustre: `-o flock`, NFS: its lock service), or set "
        "BLAST_LOCKS=off and start no grid twice at a time."
    ),
    lost="nothing",
)
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_filesystem_without_locks_is_refused_unless_the_user_goes_on_without(tmp_path, monkeypatch, reads, number):
    def flock(file: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(BlastError) as caught:
        hold_grid(GridFolder(tmp_path))
    reads(str(caught.value))
    monkeypatch.setenv("BLAST_LOCKS", "off")
    hold_grid(GridFolder(tmp_path))
    with points_held(GridFolder(tmp_path), ["one", "two"]) as hold:
        hold(["three"])
