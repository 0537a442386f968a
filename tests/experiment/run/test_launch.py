"""How trainings of several processes are configured and started, and the GPUs that they hold."""

from __future__ import annotations

import sys
import tempfile

import pytest
import torch
from switch_cases import sparsify

from blast.errors import BlastError
from blast.experiment.plan.config import parse
from blast.experiment.plan.grid import expand
from blast.experiment.plan.point import Point
from blast.experiment.run.gpus import GpuHold, gpus_in_use, visible_gpus
from blast.experiment.run.launch import worker_command
from blast.experiment.run.schedule import Schedule
from blast.training import checkpoint, launch
from blast.training.checkpoint import TrainingState
from blast.training.history import History
from blast.training.settings import TrainingSettings

SETTINGS = {"steps": 4, "batch": 12, "learning_rate": 1e-3}


def point(number: int, start: str = "scratch") -> Point:
    training = TrainingSettings.from_dict({**SETTINGS, "processes": number}).__dict__
    return Point(
        id=f"{start}{number}", grid="t", stage="train", architecture="vit-nano", start=start, training=training
    )


def config(training: dict, **block) -> dict:
    block = {"architectures": ["vit-nano"], "datasets": ["digits"], "sparsity": [0], **block}
    return {"name": "two", "training": {"default": SETTINGS, **training}, "grid": [block]}


def test_points_of_one_process_share_a_child_and_points_of_several_do_not(tmp_path):
    points = [point(1), point(1, "published"), point(2), point(3), point(1)]
    one_at_once = Schedule.of(1, 0)
    assert one_at_once.next(points, []) == points[:2]
    assert one_at_once.next(points[2:], []) == [points[2]]
    assert one_at_once.next(points[2:], [points[:2]]) == []
    assert worker_command(points[:2], tmp_path, ["p.json"], tmp_path)[:3] == [
        sys.executable,
        "-m",
        "blast.experiment.run.worker",
    ]
    command = worker_command([points[3]], tmp_path, ["p.json"], tmp_path)
    assert command[1:3] == ["-m", "torch.distributed.run"]
    assert command[command.index("--nproc-per-node") + 1] == "3"
    assert command[command.index("--max-restarts") + 1] == "0"


def test_a_point_that_trains_nothing_needs_one_process():
    assert [point(2, start).processes for start in ("scratch", "pretrained", "published", "parent")] == [2, 2, 1, 1]
    assert Point(id="b", grid="t", stage="benchmark", architecture="gpt2").processes == 1


def test_a_config_gives_processes_by_dataset_or_architecture(tmp_path):
    plan = expand(parse(config({"digits": {"processes": 2}}), tmp_path / "grid.yaml"))
    assert {one.processes for one in plan.points.values()} == {2}
    plan = expand(parse(config({"vit-nano.digits": {"processes": 4}}), tmp_path / "grid.yaml"))
    assert {one.processes for one in plan.points.values()} == {4}


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (5, "'batch' is 12, which 5 processes cannot share equally; make it a multiple of 'processes'"),
        (0, "'training.digits.processes' is 0; give a whole number of at least 1"),
        (1.5, "'training.digits.processes' is 1.5; give a whole number of at least 1"),
        ("two", "'training.digits.processes' is 'two'"),
    ],
)
def test_an_impossible_number_of_processes_is_refused_with_the_file(tmp_path, number, sentence):
    file = tmp_path / "grid.yaml"
    with pytest.raises(BlastError, match=sentence) as caught:
        expand(parse(config({"digits": {"processes": number}}), file), file)
    assert str(caught.value).startswith(str(tmp_path / "grid.yaml"))


def test_more_processes_than_gpus_is_one_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BlastError, match="needs 4 GPUs, one for each process, but 2 are available; lower 'proc"):
        launch.init_process_group()


@pytest.fixture
def four_gpus(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,GPU-7,3")


def test_two_jobs_hold_different_gpus(four_gpus):
    first, second, whole = (GpuHold(visible_gpus(), count) for count in (2, 2, 4))
    assert first.take()
    assert second.take()
    assert first.environment == {"CUDA_VISIBLE_DEVICES": "0,1"}
    assert second.environment == {"CUDA_VISIBLE_DEVICES": "GPU-7,3"}
    first.release()
    assert gpus_in_use(visible_gpus()) == 2
    assert not whole.take()
    assert whole.missing == 2
    second.release()
    assert whole.take()
    assert whole.environment == {"CUDA_VISIBLE_DEVICES": "0,1,GPU-7,3"}
    whole.release()


def test_one_job_at_a_time_collects_gpus(four_gpus):
    held, wide, other = (GpuHold(visible_gpus(), count) for count in (2, 4, 1))
    assert held.take()
    assert not wide.take()
    held.release()
    # The two are kept for the job that collects them.
    assert not other.take()
    assert wide.take()
    assert not other.take()
    wide.release()
    assert other.take()
    other.release()


def test_no_gpu_is_held_if_none_is_needed_or_there_are_too_few(four_gpus):
    for count in (0, 5):
        hold = GpuHold(visible_gpus(), count)
        assert hold.take()
        assert hold.environment == {}


@pytest.mark.parametrize(
    ("named", "found"), [("", []), ("-1", []), ("2, GPU-7", ["2", "GPU-7"]), ("1,-1,0", ["1"]), ("3,,1", ["3"])]
)
def test_gpus_are_named_as_cuda_reads_the_variable(monkeypatch, named, found):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible_gpus() == found


def test_a_state_of_another_run_is_told_in_one_sentence(tmp_path, monkeypatch):
    def saved(key: str, **settings) -> TrainingState:
        ours = sparsify("llama-nano", **settings)
        state = TrainingState(tmp_path / "state.pt", key)
        state.save(3, ours.model, ours.optimizer, ours, History())
        return state

    def taken_up(key: str) -> tuple[int, str | None]:
        ours = sparsify("llama-nano")
        state = TrainingState(tmp_path / "state.pt", key)
        return state.restore(ours.model, ours.optimizer, ours, History()), state.discarded

    saved("one")
    assert taken_up("one") == (3, None)
    assert taken_up("two")[0] == 0
    assert taken_up("two")[1].endswith("this training state is from other settings, data or code; starting anew.")
    saved("one", block=16)
    assert "is from another run (block was [16, 16] and is [32, 32]); starting anew." in taken_up("two")[1]
    monkeypatch.setattr(checkpoint, "world_size", lambda: 4)
    saved("one")
    monkeypatch.undo()
    assert "is from 4 processes and this run has 1; starting anew." in taken_up("two")[1]
    with pytest.raises(BlastError, match="from 4 processes and this run has 1; run with the same number"):
        taken_up("one")
