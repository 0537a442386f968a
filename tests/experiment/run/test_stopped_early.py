"""A job whose time is over, or that is preempted: it saves its training, and its next attempt resumes it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from patience import PATIENCE
from test_job import SPARSIFY, TRAINING, point, start

from blast.experiment.plan.paths import TRAINING_STATE, GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.records.record import read_record
from blast.experiment.run.attempts import no_progress
from blast.experiment.run.job import run_points
from blast.files import write_json

# In the process that trains: before step 17 of its first attempt it sends the signal that its machine would send.
ASKS = """
import os, pathlib, sys
if "blast.experiment.run.worker" in sys.orig_argv:
    from blast.training.settings import TrainingSettings
    rate, first = TrainingSettings.rate, pathlib.Path({file!r})
    def rate_and_signal(self, step):
        if step == 16 and os.environ.get("RANK", "0") == "0" and not first.exists():
            first.touch()
            {send}
        return rate(self, step)
    TrainingSettings.rate = rate_and_signal
"""
SENDS = {
    # Slurm tells every process of a job.
    "every process": "os.killpg(os.getpgid(0), {number})",
    "the job alone": "os.kill(os.getppid(), {number}); import time; time.sleep(1)",
    # It is the parent of torchrun, which starts sessions of their own.
    "the job of torchrun": "os.kill(int(open(f'/proc/{{os.getppid()}}/stat').read().split()[3]), {number})",
}
# It saves no state by itself.
STEPS = {"steps": 40, "checkpoint_seconds": 3600.0}


def told_to_stop(tmp_path: Path, one: Point, whom: str, number: int) -> tuple[int, str]:
    """Exit code and output of a job that is told to stop in the midst of its training."""
    code = tmp_path / "code"
    code.mkdir()
    send = SENDS[whom].format(number=int(number))
    (code / "sitecustomize.py").write_text(ASKS.format(file=str(tmp_path / "asked"), send=send))
    job = start(tmp_path / "grid", one, PYTHONPATH=os.pathsep.join([str(code), os.environ.get("PYTHONPATH", "")]))
    said, _ = job.communicate(timeout=PATIENCE)
    return job.returncode, said


@pytest.mark.slow
@pytest.mark.fault(
    fault="The time limit of a job is over, or it is preempted or cancelled (SIGTERM or SIGUSR1).",
    topic="Clusters",
    happens="It saves the state of its training at once and ends. It is submitted again, and goes on from there.",
    reads="stopped by …: 1 point left; their training states are saved, and the same command goes on from there",
    lost="nothing",
)
@pytest.mark.parametrize(
    ("whom", "number"), [("every process", signal.SIGTERM), ("the job alone", signal.SIGUSR1)], ids=str
)
def test_a_job_that_is_told_to_stop_saves_at_once_and_its_next_attempt_gives_the_same_bits(
    tmp_path, reads, whom, number
):
    one = point(training=TRAINING | STEPS, sparsify=SPARSIFY | {"steps": 40})
    code, said = told_to_stop(tmp_path, one, whom, number)
    assert code == -number, said
    reads(said)
    folder = GridFolder(tmp_path / "grid")
    log = (folder.root / "log").read_text()
    assert "told to stop after step" in log
    assert not folder.record(one.id).exists()
    saved = torch.load(folder.work(one.id) / TRAINING_STATE, weights_only=True)["step"]
    assert saved == 17 or (whom == "the job alone" and 17 <= saved < 40)

    assert start(folder.root, one).wait(PATIENCE) == 0
    assert f"resuming at step {saved + 1} of 40" in (folder.root / "log").read_text()
    assert start(tmp_path / "undisturbed", one).wait(PATIENCE) == 0
    resumed, whole = (read_record(GridFolder(tmp_path / name).record(one.id)) for name in ("grid", "undisturbed"))
    assert resumed["status"] == "ok"
    assert resumed["result"] == whole["result"]
    assert resumed["record_digest"] == whole["record_digest"]


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["average", "fully_shard"])
def test_a_training_of_two_processes_that_is_told_to_stop_saves_at_once_too(tmp_path, parallel):
    training = TRAINING | {"steps": 2000, "checkpoint_seconds": 3600.0, "processes": 2, "parallel": parallel}
    one = point(training=training, sparsify=SPARSIFY | {"steps": 2000})
    code, said = told_to_stop(tmp_path, one, "the job of torchrun", signal.SIGTERM)
    assert code == -signal.SIGTERM, said
    folder = GridFolder(tmp_path / "grid")
    assert not folder.record(one.id).exists()
    assert 17 <= torch.load(folder.work(one.id) / TRAINING_STATE, weights_only=True)["step"] < 2000


def state_of(folder: GridFolder, one: Point, content: str = "1") -> None:
    file = folder.work(one.id) / TRAINING_STATE
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)


def test_attempts_that_come_further_may_be_many_and_two_in_turn_that_do_not_are_enough(tmp_path):
    folder, one = GridFolder(tmp_path), point()
    for attempt in range(1, 6):
        assert no_progress([one], [one], folder, attempt) is None
        state_of(folder, one, "x" * attempt)
    assert no_progress([one], [one], folder, 6) is None
    assert no_progress([one], [one], folder, 7) is None
    assert "give it more time (`--set-resources point:runtime=MINUTES`)" in no_progress([one], [one], folder, 8)
    # The next run begins anew.
    for attempt in (1, 1, 1, 2):
        assert no_progress([one], [one], folder, attempt) is None


@pytest.mark.slow
@pytest.mark.fault(
    fault="The time limit of a cluster's jobs is too short for one saved training state.",
    topic="Clusters",
    happens="After two attempts in vain the point fails. Others run, and the next run repeats it.",
    reads=(
        "two attempts of its job ended early and saved nothing new: the time limit is too short for one saved state, "
        "or they were killed; give it more time (`--set-resources point:runtime=MINUTES`), or lower "
        "`checkpoint_seconds`, then run again."
    ),
    lost="nothing",
)
def test_a_point_whose_attempts_come_no_further_fails_and_the_others_of_its_job_run(tmp_path, reads):
    folder, one = GridFolder(tmp_path / "grid"), point(training=TRAINING | {"steps": 20})
    other = point(id="other", training=TRAINING | {"steps": 5}, sparsify=SPARSIFY | {"steps": 5})
    for attempt in (1, 2):
        assert no_progress([one, other], [one, other], folder, attempt) is None
    assert run_points([one, other], folder, tmp_path / "log", attempt=3) == 1
    failed = read_record(folder.record(one.id))
    assert failed["status"] == "failed"
    reads(failed["cause"])
    assert read_record(folder.record(other.id))["status"] == "ok"


@pytest.mark.parametrize("noted", ["", "[]", '{"reached": 1}', '{"reached": "x", "in_vain": "many"}'])
def test_a_damaged_note_of_an_attempt_counts_as_none(tmp_path, noted):
    folder, one = GridFolder(tmp_path), point()
    write_json(folder.work(one.id) / "point.json", {})
    (folder.work(one.id) / "attempt.json").write_text(noted)
    assert no_progress([one], [one], folder, 9) is None
