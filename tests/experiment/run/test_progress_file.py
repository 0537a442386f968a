"""The progress of a point while it runs: what it writes, and how far a reader says it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blast.experiment.plan.paths import PROGRESS, GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.run.progress_file import TRAINING, ProgressFile, progress_of
from blast.experiment.run.step_file import tell_steps


@pytest.fixture
def folder(tmp_path) -> GridFolder:
    return GridFolder(tmp_path)


def write(file: Path, *lines: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as stream:
        stream.writelines(json.dumps(line) + "\n" for line in lines)


def phase(folder: GridFolder, time: float, name: str) -> None:
    write(folder.work("a") / PROGRESS, {"time": time, "phase": name})


def steps(first: int, last: int, start: float, each: float) -> list[dict]:
    begin = {"begin": {"point": "a", "steps": 100, "time": start}}
    return [begin, *({"time": start + (step - first) * each, "step": step, "loss": 2.0} for step in range(first, last))]


def test_what_a_training_tells_is_what_a_reader_finds(folder):
    file = ProgressFile(folder.work("a") / PROGRESS)
    file.phase(TRAINING)
    point = Point(id="a", grid="g", stage="train", architecture="gpt2-nano", training={"steps": 60})
    with tell_steps(point, folder) as watch:
        watch(21, {"loss": 2.5, "validation_loss": 3.0})
        progress = progress_of(folder, "a")
        assert (progress.phase, progress.step, progress.steps, progress.loss) == (TRAINING, 21, 60, 2.5)
        assert progress.left is None
        watch(60, {"loss": 2.0})
    file.phase("evaluating")
    progress = progress_of(folder, "a")
    assert (progress.phase, progress.step, progress.steps, progress.loss) == ("evaluating", 60, 60, 2.0)


def test_the_time_left_is_that_of_the_last_steps(folder):
    phase(folder, 100, TRAINING)
    write(folder.live("a"), *steps(1, 42, 100.0, 0.5))
    progress = progress_of(folder, "a", now=130.0)
    assert progress.step == 41
    assert progress.left == pytest.approx(59 * 0.5)
    assert progress.age == pytest.approx(10.0)


def test_steps_of_an_earlier_training_say_nothing(folder):
    write(folder.live("a"), *steps(1, 42, 100.0, 0.5))
    phase(folder, 5000, TRAINING)
    progress = progress_of(folder, "a", now=5002.0)
    assert (progress.step, progress.left, progress.age) == (0, None, 2.0)


def test_a_point_that_loads_its_data_has_no_step(folder):
    phase(folder, 0, "loading data")
    write(folder.live("a"), *steps(1, 42, 100.0, 0.5))
    assert progress_of(folder, "a", now=1.0).step == 0


def test_lines_that_cannot_be_read_are_skipped(folder):
    phase(folder, 0, TRAINING)
    write(folder.live("a"), *steps(1, 4, 0.0, 1.0))
    with folder.live("a").open("a") as stream:
        stream.write('[1]\n{"time": "x", "step": 1}\n{"time": 9, "step": "x"}\n{"time": 3, "st')
    assert progress_of(folder, "a", now=3.0).step == 3


def test_a_point_without_progress_has_none(folder):
    assert progress_of(folder, "a") is None


def test_a_disk_that_takes_nothing_stops_no_training(tmp_path):
    (tmp_path / "file").write_text("")
    ProgressFile(tmp_path / "file" / PROGRESS).phase(TRAINING)
