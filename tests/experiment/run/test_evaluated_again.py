"""A point whose evaluation changed is evaluated again from its checkpoint; nothing is trained."""

from __future__ import annotations

from dataclasses import replace

import pytest

from blast.errors import BlastError
from blast.experiment.plan.config import parse
from blast.experiment.plan.grid import expand
from blast.experiment.plan.paths import TRAINED, GridFolder
from blast.experiment.records import state
from blast.experiment.records.fingerprint import fingerprint, training_fingerprint
from blast.experiment.records.record import make_record, read_record
from blast.experiment.records.state import Left, state_of
from blast.experiment.run import evaluate, train
from blast.experiment.run.worker import run_point
from blast.files import write_json

TRAINING = {"steps": 4, "batch": 4, "learning_rate": 0.001, "evaluate_every": 4, "evaluate_limit": 100}


def points(**evaluation) -> dict:
    values = {
        "name": "again",
        "training": {"default": TRAINING},
        "evaluation": evaluation,
        "grid": [{"architectures": ["vit-nano"], "datasets": ["digits"], "sparsity": [0, 0.5], "blocks": [16]}],
    }
    return expand(parse(values, "grid.yaml")).points


DENSE, PRUNED = points()


def write(point, folder: GridFolder, result: dict, **changes) -> None:
    run = {
        "fingerprint": fingerprint(point), "training_fingerprint": training_fingerprint(point), "wall_s": 12.5,
        "hardware": "the-first", "started": "2026-01-02T03:04:05+00:00", **result.pop("run", {}), **changes,
    }  # fmt: skip
    write_json(folder.record(point.id), make_record(point, status="ok", result=result, run=run))


@pytest.fixture(params=[DENSE, PRUNED])
def trained(request, tmp_path):
    """A folder with the record of a trained point, and the point."""
    folder, point = GridFolder(tmp_path / "again"), points()[request.param]
    write(point, folder, run_point(point, folder))
    return folder, point


def no_training(*_arguments, **_named):
    raise AssertionError("something was trained")


@pytest.mark.fault(
    fault="The evaluation of a trained point changed.",
    topic="What a run plans",
    happens="Its checkpoint is evaluated again. The numbers are those of a whole run.",
    reads="only the evaluation changed: the checkpoint is evaluated again",
    lost="nothing",
)
def test_only_the_evaluation_is_left_and_gives_the_numbers_of_a_whole_run(
    trained, tmp_path, monkeypatch, capsys, reads
):
    folder, before = trained
    after = points(train=64)[before.id]
    assert state_of(before, folder).left is Left.NOTHING
    assert state_of(after, folder).left is Left.EVALUATION
    old = read_record(folder.record(before.id))
    with monkeypatch.context() as patched:
        patched.setattr(train, "train", no_training)
        result = run_point(after, folder)
    reads(capsys.readouterr().out)
    run = result.pop("run")
    whole = run_point(after, GridFolder(tmp_path / "whole"))
    del whole["run"]
    assert result == whole
    assert len(result["metrics"]) > len(old["result"]["metrics"])
    # Times and hardware stay those of the training; the record says where the rest was done.
    assert run["training_seconds"] == old["run"]["training_seconds"]
    assert (run["hardware"], run["trained"]["wall_s"]) == ("the-first", 12.5)
    assert run["evaluated_on"].startswith("cpu-")


@pytest.mark.fault(
    fault="The evaluation changed, and the checkpoint is another one.",
    topic="What a run plans",
    happens="The point is trained again.",
    reads="the checkpoint is not the one of the record: trained again",
    lost="nothing",
)
@pytest.mark.fault(
    fault="The evaluation changed, and the checkpoint is missing.",
    topic="What a run plans",
    happens="The point is trained again.",
    reads="… of the evaluation changed, and its checkpoint is not here",
    lost="nothing",
)
def test_other_training_settings_and_a_lost_or_other_checkpoint_train_again(trained, capsys, reads):
    folder, point = trained
    assert state_of(replace(point, training=point.training | {"steps": 5}), folder).left is Left.ALL
    assert state_of(points(separate_test=True)[point.id], folder).left is Left.ALL
    after = points(train=64)[point.id]
    weights = next((folder.work(point.id) / "checkpoint").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    assert evaluate.evaluate_again(after, folder) is None
    reads(capsys.readouterr().out)
    weights.unlink()
    found = state_of(after, folder)
    assert found.left is Left.ALL
    assert "its checkpoint is not here" in found.reason
    reads(found.reason)


def test_an_edit_of_the_evaluation_leaves_the_training_and_one_of_the_training_does_not(trained, monkeypatch):
    folder, point = trained
    monkeypatch.setattr(state, "fingerprint", lambda _: "sha256:edited")
    assert state_of(point, folder).left is Left.EVALUATION
    monkeypatch.setattr(state, "training_fingerprint", lambda _: "sha256:edited")
    assert state_of(point, folder).left is Left.ALL


def test_an_older_record_has_one_fingerprint_for_both(trained):
    folder, point = trained
    record = read_record(folder.record(point.id))
    del record["run"]["training_fingerprint"], record["run_digest"]
    write_json(folder.record(point.id), record)
    assert state_of(point, folder).left is Left.NOTHING
    assert state_of(points(train=64)[point.id], folder).left is Left.EVALUATION


@pytest.mark.fault(
    fault="An evaluation fails.",
    topic="What a run plans",
    happens="The next run tries it again, without a training.",
    lost="nothing",
)
@pytest.mark.parametrize("aside", [False, True])
def test_an_evaluation_that_fails_is_tried_again_without_a_training(trained, monkeypatch, aside):
    folder, point = trained
    after = points(train=64)[point.id]

    def fails(*_arguments):
        raise BlastError("the disk is full.")

    with monkeypatch.context() as patched:
        patched.setattr(evaluate, "evaluate_saved", fails)
        with pytest.raises(BlastError, match="the disk is full"):
            run_point(after, folder)
    failed = make_record(after, status="failed", result={}, cause="the disk is full.", run={"wall_s": 1.0})
    write_json(folder.record(point.id), failed)
    if aside:  # as the verdict does
        folder.failed(point.id).parent.mkdir()
        folder.record(point.id).rename(folder.failed(point.id))
    assert state_of(after, folder).left is Left.EVALUATION
    monkeypatch.setattr(train, "train", no_training)
    assert len(run_point(after, folder)["metrics"]) > 3
    # A record that somebody removed is made anew.
    (folder.work(point.id) / TRAINED).unlink()
    assert state_of(after, folder).left is Left.ALL
