from __future__ import annotations

import subprocess
import sys

import pytest
from patience import PATIENCE

from blast.errors import BlastError
from blast.experiment.plan.paths import GridFolder
from blast.experiment.run.locks import hold_grid


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
    with pytest.raises(BlastError, match=f"process {first.pid} is already running this grid"):
        hold_grid(GridFolder(tmp_path))
    first.kill()
    first.wait(PATIENCE)
    hold_grid(GridFolder(tmp_path))
    assert (tmp_path / ".lock").read_text() != str(first.pid)
