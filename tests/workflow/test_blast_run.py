"""`blast run` on a real grid: Ctrl-C stops Snakemake and what trains, and the same command goes on from there."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from pathlib import Path

import faults
import pytest
from patience import PATIENCE, wait_until
from workflow_place import Place, grid

POINT = "vit-nano.digits.dense.seed0"
ONE = {"architectures": ["vit-nano"], "datasets": ["digits"], "blocks": [16], "sparsity": [0]}
STEPS = 1500
TRAINING = {"steps": STEPS, "batch": 16, "learning_rate": 1e-3, "evaluate_every": 500, "checkpoint_seconds": 0.5}


@pytest.mark.slow
@pytest.mark.fault(
    fault="`blast run` is stopped by Ctrl-C.",
    topic="Signals and processes",
    happens="Snakemake and all jobs end. The same command resumes the training.",
    reads="stopping all jobs; what is done is kept, and the same command goes on from there.",
    lost="nothing that was saved",
)
def test_ctrl_c_stops_all_and_the_same_command_resumes(tmp_path: Path, reads: faults.Reads) -> None:
    place = Place(tmp_path / "place")
    place.write(grid("held", grid=[ONE], training={"default": TRAINING}))
    results = place.folder / "results" / "held"
    command = [str(place.python), "-P", "-m", "blast", "run", "grid.yaml", "points", "--cores", "2"]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            cwd=place.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, "BLAST_STREAM": "0"},
        )

    run = start()
    wait_until(lambda: any(results.glob("points/*/training_state.pt")), "the first saved state")
    others = processes_in(place.folder) - {run.pid}
    assert others
    os.killpg(run.pid, signal.SIGINT)
    said, _ = run.communicate(timeout=PATIENCE)
    assert run.returncode == 1, said
    reads(said)
    assert "Traceback" not in said
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in others), "the end of all processes")
    assert not (results / "records" / f"{POINT}.json").exists()

    run = start()
    said, _ = run.communicate(timeout=PATIENCE)
    assert run.returncode == 0, said
    assert (results / "records" / f"{POINT}.json").is_file()
    resumed = re.search(rf"resuming at step (\d+) of {STEPS}", (results / "logs" / f"{POINT}.log").read_text())
    assert resumed
    assert int(resumed[1]) > 1


def processes_in(folder: Path) -> set[int]:
    """The processes that work in a folder."""
    found = set()
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if Path(os.readlink(place / "cwd")) == folder:
                found.add(int(place.name))
    return found
