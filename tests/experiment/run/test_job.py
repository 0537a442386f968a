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
from pathlib import Path

import fake_worker
import pytest
import torch
from patience import PATIENCE, wait_until

from blast.evaluation.item_scores import read_item_scores
from blast.experiment.cli import main
from blast.experiment.plan.paths import TRAINING_STATE, GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.records.record import read_record
from blast.experiment.run import child as child_module
from blast.experiment.run.job import run_points
from blast.experiment.run.worker import outcome_of
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


# A shell that is no terminal starts a job with `&` so that it ignores SIGINT.
BACKGROUND = ["sh", "-c", """trap '' INT; exec "$@\"""", "sh"]


def start(folder: Path, *points: Point, background: bool = False, **environment: str) -> subprocess.Popen:
    files = []
    for one in points:
        write_json(folder / f"{one.id}.json", one.to_dict())
        files.append(str(folder / f"{one.id}.json"))
    command = [sys.executable, "-m", "blast", "job", *files, "--out", str(folder), "--log", str(folder / "log")]
    return subprocess.Popen(
        [*BACKGROUND, *command] if background else command,
        env=os.environ | environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# In the process that trains: it kills its job when the state of step 60 is written, and trains no further.
KILLS_ITS_JOB = """
import os, signal, sys, time
if "blast.experiment.run.worker" in sys.orig_argv:
    from blast.training.checkpoint import TrainingState
    save = TrainingState.save
    def save_and_kill(self, step, *rest):
        save(self, step, *rest)
        if step >= 60:
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(3600)
    TrainingState.save = save_and_kill
"""


def whole() -> Point:
    """A training of 120 steps that saves its state at each of them."""
    return point(training=TRAINING | {"checkpoint_seconds": 0.0})


@pytest.mark.slow
@pytest.mark.fault(
    fault="A job is killed while it trains (`kill -9`).",
    topic="Signals and processes",
    happens="The next run resumes. The result is the same, bit for bit.",
    reads="resuming at step …",
    lost="the steps since the last saved state, which are done again",
)
def test_a_run_killed_while_training_resumes_to_the_same_result_bit_for_bit(tmp_path, reads):
    undisturbed = GridFolder(tmp_path / "undisturbed")
    assert run_points([whole()], undisturbed, tmp_path / "undisturbed.log") == 0
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "sitecustomize.py").write_text(KILLS_ITS_JOB)
    path = os.pathsep.join([str(tmp_path / "code"), *filter(None, [os.environ.get("PYTHONPATH")])])
    folder = GridFolder(tmp_path / "grid")
    assert start(folder.root, whole(), PYTHONPATH=path).wait(PATIENCE) == -signal.SIGKILL
    state = folder.work(point().id) / TRAINING_STATE
    assert not folder.record(point().id).exists()
    assert state.is_file()

    assert start(folder.root, whole()).wait(PATIENCE) == 0
    log = (folder.root / "log").read_text()
    assert "resuming at step" in log
    reads(log)
    one, two = (read_record(each.record(point().id)) for each in (undisturbed, folder))
    assert one["status"] == "ok"
    assert one["result"] == two["result"]
    assert one["record_digest"] == two["record_digest"]
    assert not state.exists()


def started_for_long(folder: Path, background: bool = False) -> tuple[subprocess.Popen, str]:
    """A job that would take hours, and the process that trains for it."""
    long = point(training=TRAINING | {"steps": 100_000}, sparsify=SPARSIFY | {"steps": 100_000})
    job = start(folder, long, background=background)
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children")
    wait_until(children.read_text, "the start of the training")
    return job, children.read_text().split()[0]


def wait_for_the_end(process: str) -> None:
    wait_until(lambda: not Path(f"/proc/{process}").exists(), "the end of the training")


@pytest.mark.fault(
    fault="A job is stopped by Ctrl-C, or by `kill -INT` where it runs in the background.",
    topic="Signals and processes",
    happens="The job and its training end. It exits with 130.",
    reads="blast: stopped; what is done is kept, and the same command goes on from there.",
    lost="nothing that was saved",
)
@pytest.mark.parametrize("background", [False, True])
def test_a_job_stopped_by_hand_prints_one_sentence(tmp_path, background, reads):
    job, child = started_for_long(tmp_path, background)
    if background:
        os.kill(job.pid, signal.SIGINT)
    else:
        os.killpg(job.pid, signal.SIGINT)
    _, said = job.communicate(timeout=PATIENCE)
    assert job.returncode == 130
    reads(said)
    assert said == "blast: stopped; what is done is kept, and the same command goes on from there.\n"
    wait_for_the_end(child)


@pytest.mark.fault(
    fault="A job is killed, so that it cannot stop its training.",
    topic="Signals and processes",
    happens="The training ends by itself.",
    lost="nothing that was saved",
)
def test_the_child_of_a_killed_job_ends(tmp_path):
    job, child = started_for_long(tmp_path)
    os.kill(job.pid, signal.SIGKILL)
    job.wait(PATIENCE)
    wait_for_the_end(child)


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[GridFolder, int, list[str]]:
    """One job: a point that fails, one of each method, a sparse and a dense one, and one with a damaged training state;
    with its failures and its progress lines."""
    folder = GridFolder(tmp_path_factory.mktemp("job"))
    hot = point(id="hot", training=TRAINING | {"learning_rate": 1e30, "steps": 20}, sparsify=SPARSIFY | {"steps": 20})
    one, said = short("blast"), io.StringIO()
    sparse = point(id="sparse", training=one.training, sparsify=one.sparsify | {"execution": "sparse"})
    damaged = point(id="damaged", training=one.training, sparsify=one.sparsify)
    state = folder.work(damaged.id) / TRAINING_STATE
    state.parent.mkdir(parents=True)
    state.write_bytes(b"half")
    points = [hot, *map(short, METHODS_TRAINED), sparse, damaged, short()]
    with contextlib.redirect_stdout(said):
        failures = run_points(points, folder, folder.root / "log", total=len(points))
    return folder, failures, said.getvalue().splitlines()


@pytest.mark.fault(
    fault="The loss is not a number.",
    topic="What the verdict says",
    happens="The point fails. The rest of the job runs.",
    reads="the loss is …; lower 'learning_rate'",
    lost="nothing",
)
def test_a_nan_loss_is_a_failed_record_with_one_sentence_and_the_rest_of_the_job_runs(done, reads):
    folder, failures, lines = done
    assert failures == 1
    record = read_record(folder.record("hot"))
    assert record["status"] == "failed"
    assert "the loss is" in record["cause"]
    reads(record["cause"])
    assert "lower 'learning_rate'" in record["cause"]
    assert "\n" not in record["cause"]
    assert "Traceback" in (folder.root / "log").read_text()
    assert read_record(folder.record(short().id))["status"] == "ok"
    assert "FAILED" in lines[0]
    assert "7 of 7 points, none left" in lines[-1]


@pytest.mark.parametrize("method", METHODS_TRAINED)
def test_a_pruned_point_is_evaluated_in_its_sparse_state_at_the_exact_budget(done, method):
    result = read_record(done[0].record(method))["result"]
    for matrix in result["sparsity"]["matrices"].values():
        assert matrix["live"] == max(1, round(0.1 * matrix["blocks"]))
    metrics = {metric["metric"]: metric for metric in result["metrics"]}
    assert {"top1", "top5", "weights_bytes", "mlp_bytes", "checkpoint_bytes"} <= set(metrics)
    assert metrics["top1"]["n"] == 360


@pytest.mark.fault(
    fault="A training state is of other settings, data or code.",
    topic="Signals and processes",
    happens="It is not used. The run starts anew.",
    reads="this training state is from other settings, data or code; starting anew.",
    lost="the other state",
)
def test_a_training_state_of_other_settings_is_not_resumed(tmp_path, capsys, reads):
    folder = GridFolder(tmp_path)
    state = folder.work("blast") / TRAINING_STATE
    state.parent.mkdir(parents=True)
    torch.save({"key": "another run", "step": 19}, state)
    outcome = outcome_of(short("blast"), folder)
    said = capsys.readouterr().out
    assert "this training state is from other settings, data or code; starting anew" in said
    reads(said)
    assert "resuming" not in said
    assert len(outcome["result"]["curves"]["train_loss"]["step"]) == 20


def test_a_finished_point_is_not_run_again(done, capsys):
    folder, _, _ = done
    before = folder.record("blast").read_bytes()
    run_points([short("blast")], folder, folder.root / "log2")
    assert "already done" in capsys.readouterr().out
    assert folder.record("blast").read_bytes() == before
    assert not Path(folder.root / "log2").read_text()


def test_a_point_with_other_settings_is_run_again(done, tmp_path, monkeypatch):
    monkeypatch.setattr(child_module, "worker_command", fake_worker.command)
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


@pytest.mark.slow
def test_a_child_that_is_killed_is_a_failed_record_that_names_the_likely_cause(tmp_path):
    first = point(training=TRAINING | {"steps": 100_000}, sparsify=SPARSIFY | {"steps": 100_000})
    second = dense(training=TRAINING | {"steps": 5})
    job = start(tmp_path, first, second)
    wait_until((GridFolder(tmp_path).work(first.id) / TRAINING_STATE).is_file, "a training state")
    child = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()[0]
    os.kill(int(child), signal.SIGKILL)
    assert job.wait(PATIENCE) == 0
    record = read_record(GridFolder(tmp_path).record(first.id))
    assert record["status"] == "failed"
    assert "lack of memory" in record["cause"]
    assert read_record(GridFolder(tmp_path).record(second.id))["status"] == "ok"


@pytest.mark.fault(
    fault="A training state is damaged.",
    topic="Files that are damaged or come from elsewhere",
    happens="It is not used. The run starts anew.",
    reads="…: this training state is damaged or half-written; starting anew.",
    lost="the steps so far, which are done again",
)
def test_a_damaged_training_state_is_not_used_and_the_log_says_so(done, reads):
    folder = done[0]
    log = (folder.root / "log").read_text()
    state = folder.work("damaged") / TRAINING_STATE
    assert f"{state}: this training state is damaged or half-written; starting anew." in log
    reads(log)
    ours, theirs = (read_record(folder.record(name))["result"] for name in ("damaged", "blast"))
    # The file of the items names its point, so its digest is another one.
    for result, name in ((ours, "damaged"), (theirs, "blast")):
        items, _ = read_item_scores(folder.work(name) / result["artifacts"].pop("items")["path"])
        result["items"] = {task: (one.nats.tolist(), one.digest) for task, one in items.items()}
        result["right"] = {task: [v.tolist() for v in one.correct.values()] for task, one in items.items()}
    assert ours == theirs


def test_sparse_and_masked_execution_give_the_same_result_except_for_rounding(done):
    ours, theirs = (read_record(done[0].record(name))["result"] for name in ("sparse", "blast"))
    assert ours["sparsity"] == theirs["sparsity"]
    assert ours["parameters"] == theirs["parameters"]
    assert ours["curves"]["train_loss"]["value"] == pytest.approx(theirs["curves"]["train_loss"]["value"], rel=1e-4)
    names = [entry["metric"] for entry in theirs["metrics"]]
    assert [entry["metric"] for entry in ours["metrics"]] == names
