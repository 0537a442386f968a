"""Points run by `python -m blast job`: they resume after a kill, and always get a record."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from blast.experiment.cli import main
from blast.experiment.plan.paths import TRAINING_STATE, GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.records.record import read_record
from blast.experiment.run.job import run_points
from blast.files import write_json
from blast.sparsity.config import METHODS

TRAINING = {"steps": 120, "batch": 32, "learning_rate": 2e-3, "evaluate_every": 40, "checkpoint_seconds": 0.3}
METHODS_TRAINED = ["blast", "rigl_swap", "random"]
SPARSIFY = {"sparsity": 0.9, "block": [16, 16], "steps": 120, "update_every": 10}


def point(**changes) -> Point:
    values = {
        "id": "vit-nano.digits.blast.s90.b16.seed0",
        "grid": "t",
        "stage": "train",
        "architecture": "vit-nano",
        "dataset": "digits",
        "method": "blast",
        "sparsity": 0.9,
        "block": (16, 16),
        "training": TRAINING,
        "sparsify": SPARSIFY,
        **changes,
    }
    return Point(**values)


def dense(**changes) -> Point:
    return point(id="vit-nano.digits.dense.seed0", method="dense", sparsity=0.0, block=None, sparsify=None, **changes)


def short(method: str | None = None) -> Point:
    """Twenty steps of a method, or of the dense model."""
    training = TRAINING | {"steps": 20}
    if method is None:
        return dense(training=training)
    return point(id=method, method=method, training=training, sparsify={**SPARSIFY, **METHODS[method], "steps": 20})


def start(folder: Path, *points: Point) -> subprocess.Popen:
    files = []
    for one in points:
        write_json(folder / f"{one.id}.json", one.to_dict())
        files.append(str(folder / f"{one.id}.json"))
    command = [sys.executable, "-m", "blast", "job", *files, "--out", str(folder), "--log", str(folder / "log")]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_run_killed_while_training_resumes_to_the_same_result_bit_for_bit(tmp_path):
    undisturbed = start(tmp_path / "a", point())
    assert undisturbed.wait(120) == 0

    killed = start(tmp_path / "b", point())
    state = GridFolder(tmp_path / "b").work(point().id) / TRAINING_STATE
    deadline = time.monotonic() + 60
    while not state.is_file() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait(30)
    assert not GridFolder(tmp_path / "b").record(point().id).exists(), "it was done before it could be killed"
    assert state.is_file()

    assert start(tmp_path / "b", point()).wait(120) == 0
    log = (tmp_path / "b" / "log").read_text()
    assert "resuming at step" in log
    one, two = (read_record(GridFolder(tmp_path / name).record(point().id)) for name in "ab")
    assert one["status"] == "ok"
    assert one["result"] == two["result"]
    assert one["record_digest"] == two["record_digest"]
    assert not state.exists()


def started_for_long(folder: Path) -> tuple[subprocess.Popen, str]:
    """A job that would take hours, and the process that trains for it."""
    job = start(folder, point(training=TRAINING | {"steps": 100_000}, sparsify=SPARSIFY | {"steps": 100_000}))
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children")
    deadline = time.monotonic() + 30
    while not (found := children.read_text().split()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return job, found[0]


def gone(process: str) -> bool:
    """Whether a process ends within half a minute."""
    deadline = time.monotonic() + 30
    while Path(f"/proc/{process}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    return not Path(f"/proc/{process}").exists()


def test_a_job_stopped_by_hand_prints_one_sentence(tmp_path):
    job, child = started_for_long(tmp_path)
    os.killpg(job.pid, signal.SIGINT)
    _, said = job.communicate(timeout=30)
    assert job.returncode == 130
    assert said == "blast: stopped; what is done is kept, and the same command goes on from there.\n"
    assert gone(child)


def test_the_child_of_a_killed_job_ends(tmp_path):
    job, child = started_for_long(tmp_path)
    os.kill(job.pid, signal.SIGKILL)
    job.wait(30)
    assert gone(child)


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[GridFolder, int, list[str]]:
    """One job: a point that fails, one of each method, and a dense one; with its failures and its progress lines."""
    folder = GridFolder(tmp_path_factory.mktemp("job"))
    hot = point(id="hot", training=TRAINING | {"learning_rate": 1e30, "steps": 20}, sparsify=SPARSIFY | {"steps": 20})
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        failures = run_points([hot, *map(short, METHODS_TRAINED), short()], folder, folder.root / "log", total=5)
    return folder, failures, said.getvalue().splitlines()


def test_a_nan_loss_is_a_failed_record_with_one_sentence_and_the_rest_of_the_job_runs(done):
    folder, failures, lines = done
    assert failures == 1
    record = read_record(folder.record("hot"))
    assert record["status"] == "failed"
    assert "the loss is" in record["cause"]
    assert "lower 'learning_rate'" in record["cause"]
    assert "\n" not in record["cause"]
    assert "Traceback" in (folder.root / "log").read_text()
    assert read_record(folder.record(short().id))["status"] == "ok"
    assert "FAILED" in lines[0]
    assert "5 of 5 points, none left" in lines[-1]


@pytest.mark.parametrize("method", METHODS_TRAINED)
def test_a_pruned_point_is_evaluated_in_its_sparse_state_at_the_exact_budget(done, method):
    result = read_record(done[0].record(method))["result"]
    for matrix in result["sparsity"]["matrices"].values():
        assert matrix["live"] == max(1, round(0.1 * matrix["blocks"]))
    metrics = {metric["metric"]: metric for metric in result["metrics"]}
    assert {"top1", "top5", "weights_bytes", "mlp_bytes", "checkpoint_bytes"} <= set(metrics)
    assert metrics["top1"]["n"] == 360


def test_a_training_state_of_other_settings_is_not_resumed(tmp_path):
    folder = GridFolder(tmp_path)
    state = folder.work("blast") / TRAINING_STATE
    state.parent.mkdir(parents=True)
    torch.save({"key": "another run", "step": 19}, state)
    assert run_points([short("blast")], folder, tmp_path / "log") == 0
    assert "going on" not in (tmp_path / "log").read_text()
    assert len(read_record(folder.record("blast"))["result"]["curves"]["train_loss"]["step"]) == 20


def test_a_finished_point_is_not_run_again(done, capsys):
    folder, _, _ = done
    before = folder.record("blast").read_bytes()
    run_points([short("blast")], folder, folder.root / "log2")
    assert "already done" in capsys.readouterr().out
    assert folder.record("blast").read_bytes() == before
    assert not Path(folder.root / "log2").read_text()


def test_a_point_with_other_settings_is_run_again(done, tmp_path):
    folder = GridFolder(tmp_path)
    shutil.copytree(done[0].root / "records", tmp_path / "records")
    other = dense(training=TRAINING | {"steps": 6})
    run_points([other], folder, tmp_path / "log")
    assert read_record(folder.record(other.id))["point_digest"] == other.digest != short().digest


def test_records_of_another_machine_are_imported_only_if_their_digests_agree(done, tmp_path, capsys):
    away = GridFolder(tmp_path / "away")
    shutil.copytree(done[0].root, away.root)
    command = ["import", str(away.root), "--grid-dir", str(tmp_path / "here")]
    assert main(command) == 0
    here = GridFolder(tmp_path / "here")
    assert here.record("blast").read_bytes() == away.record("blast").read_bytes()
    assert (here.work("blast") / "checkpoint" / "blast.safetensors").is_file()
    weights = away.work("blast") / "checkpoint" / "blast.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert main(command) == 2
    assert "is not the one its record names" in capsys.readouterr().err
    values = json.loads(away.record("blast").read_text())
    values["result"]["metrics"][0]["value"] += 1
    away.record("blast").write_text(json.dumps(values))
    assert main(command) == 2
    assert "was altered" in capsys.readouterr().err


def test_a_child_that_is_killed_is_a_failed_record_that_names_the_likely_cause(tmp_path):
    first = point(training=TRAINING | {"steps": 100_000}, sparsify=SPARSIFY | {"steps": 100_000})
    second = dense(training=TRAINING | {"steps": 5})
    job = start(tmp_path, first, second)
    state = GridFolder(tmp_path).work(first.id) / TRAINING_STATE
    deadline = time.monotonic() + 60
    while not state.is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    child = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()[0]
    os.kill(int(child), signal.SIGKILL)
    assert job.wait(60) == 0
    record = read_record(GridFolder(tmp_path).record(first.id))
    assert record["status"] == "failed"
    assert "lack of memory" in record["cause"]
    assert read_record(GridFolder(tmp_path).record(second.id))["status"] == "ok"


def test_a_damaged_training_state_is_not_used_and_the_log_says_so(done, tmp_path):
    folder, one = GridFolder(tmp_path), short("blast")
    state = folder.work(one.id) / TRAINING_STATE
    state.parent.mkdir(parents=True)
    state.write_bytes(b"half")
    run_points([one], folder, tmp_path / "log")
    assert f"{state}: this training state is damaged or half-written; starting anew." in (tmp_path / "log").read_text()
    assert read_record(folder.record(one.id))["result"] == read_record(done[0].record(one.id))["result"]


def test_sparse_and_masked_execution_give_the_same_result_except_for_rounding(done, tmp_path):
    one, folder = short("blast"), GridFolder(tmp_path)
    sparse = point(id="sparse", training=one.training, sparsify=one.sparsify | {"execution": "sparse"})
    assert run_points([sparse], folder, tmp_path / "log", total=1) == 0
    ours, theirs = read_record(folder.record("sparse"))["result"], read_record(done[0].record(one.id))["result"]
    assert ours["sparsity"] == theirs["sparsity"]
    assert ours["parameters"] == theirs["parameters"]
    assert ours["curves"]["train_loss"]["value"] == pytest.approx(theirs["curves"]["train_loss"]["value"], rel=1e-4)
    names = [entry["metric"] for entry in theirs["metrics"]]
    assert [entry["metric"] for entry in ours["metrics"]] == names
