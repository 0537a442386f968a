"""How far a point is while it runs: what it writes, and what a reader says."""

from __future__ import annotations

import json

import pytest

from blast.experiment.plan.paths import PROGRESS, GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.run.progress_file import TRAINING, Progress, ProgressFile, progress_of
from blast.experiment.run.step_file import tell_steps


@pytest.fixture
def folder(tmp_path) -> GridFolder:
    return GridFolder(tmp_path)


def write(folder: GridFolder, *lines: dict) -> None:
    file = folder.live("a")
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as stream:
        stream.writelines(json.dumps(line) + "\n" for line in lines)


def steps(first: int, last: int, each: float) -> list[dict]:
    return [{"time": 100 + step * each, "step": step, "loss": 2.0} for step in range(first, last)]


def train(folder: GridFolder) -> None:
    ProgressFile(folder.work("a") / PROGRESS).phase(TRAINING)


def test_what_a_training_tells_is_what_a_reader_finds(folder):
    point = Point(id="a", grid="g", stage="train", architecture="vit-nano", dataset="digits", training={"steps": 60})
    ProgressFile(folder.work("a") / PROGRESS).phase("loading data")
    assert progress_of(folder, "a") == Progress("loading data")
    train(folder)
    with tell_steps(point, folder) as watch:
        watch(21, {"loss": 2.5, "train_loss": 2.5})
        assert progress_of(folder, "a") == Progress(TRAINING, 21, 60, 2.5, None)


def test_the_time_left_is_that_of_the_last_steps(folder):
    train(folder)
    write(folder, {"begin": {"steps": 100}}, *steps(1, 21, 9.0), *steps(21, 41, 0.5))
    assert progress_of(folder, "a").left == pytest.approx(60 * 0.5)


def test_a_long_file_is_read_at_its_end_and_its_first_line_says_how_many_steps_there_are(folder):
    train(folder)
    write(folder, {"begin": {"steps": 9000}}, *steps(1, 5000, 0.5))
    found = progress_of(folder, "a")
    assert (found.step, found.steps) == (4999, 9000)


def test_a_point_that_evaluates_says_so(folder):
    train(folder)
    write(folder, {"begin": {"steps": 100}}, *steps(1, 101, 1.0))
    ProgressFile(folder.work("a") / PROGRESS).phase("evaluating")
    assert progress_of(folder, "a") == Progress("evaluating")


def test_lines_that_cannot_be_read_are_skipped(folder):
    train(folder)
    write(folder, {"begin": 3}, *steps(1, 4, 1.0))
    with folder.live("a").open("a") as stream:
        stream.write('[1]\n{"time": "x", "step": 1}\n{"time": 9, "step": "x"}\n{"time": 3, "st')
    assert progress_of(folder, "a") == Progress(TRAINING, 3, 0, 2.0, None)


def test_a_point_without_progress_has_none(folder):
    assert progress_of(folder, "a") is None


def test_a_disk_that_takes_nothing_stops_no_training(tmp_path):
    (tmp_path / "file").write_text("")
    ProgressFile(tmp_path / "file" / PROGRESS).phase(TRAINING)
