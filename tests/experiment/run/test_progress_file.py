"""The progress of a point while it runs: what it writes, and how far a reader says it is."""

from __future__ import annotations

import json

import pytest

from blast.experiment.plan.paths import PROGRESS, GridFolder
from blast.experiment.run.progress_file import TRAINING, ProgressFile, entries, progress_of


@pytest.fixture
def folder(tmp_path) -> GridFolder:
    return GridFolder(tmp_path)


def write(folder: GridFolder, *lines: dict) -> None:
    file = folder.work("a") / PROGRESS
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as stream:
        stream.writelines(json.dumps(line) + "\n" for line in lines)


def steps(first: int, last: int, start: float, each: float) -> list[dict]:
    return [
        {"time": start + (step - first) * each, "step": step, "steps": 100, "loss": 2.0, "curves": {}}
        for step in range(first, last)
    ]


def test_what_a_point_notes_is_what_a_reader_finds(folder):
    file = ProgressFile(folder.work("a") / PROGRESS)
    file.phase(TRAINING)
    file.step(60, 20, 2.5, {"train_loss": 2.5, "validation_loss": 3.0})
    found = list(entries(folder.work("a") / PROGRESS))
    assert found[0]["phase"] == TRAINING
    assert found[1]["curves"] == {"train_loss": 2.5, "validation_loss": 3.0}
    progress = progress_of(folder, "a")
    assert (progress.step, progress.steps, progress.loss, progress.left) == (21, 60, 2.5, None)


def test_the_time_left_is_that_of_the_last_steps(folder):
    write(folder, {"time": 0, "phase": TRAINING}, *steps(0, 41, 100.0, 0.5))
    progress = progress_of(folder, "a", now=130.0)
    assert progress.step == 41
    assert progress.left == pytest.approx(59 * 0.5)
    assert progress.age == pytest.approx(10.0)


def test_the_pause_before_a_resume_is_no_time_of_a_step(folder):
    write(folder, {"time": 0, "phase": TRAINING}, *steps(0, 11, 0.0, 1.0))
    write(folder, {"time": 5000, "phase": TRAINING}, *steps(5, 8, 5000.0, 1.0))
    assert progress_of(folder, "a", now=5002.0).left == pytest.approx(92)


def test_a_point_that_evaluates_says_so_and_has_no_time_left(folder):
    write(folder, {"time": 0, "phase": TRAINING}, *steps(0, 100, 0.0, 1.0), {"time": 101, "phase": "evaluating"})
    progress = progress_of(folder, "a", now=102.0)
    assert (progress.phase, progress.step, progress.left) == ("evaluating", 100, 0)


def test_lines_that_cannot_be_read_are_skipped(folder):
    write(folder, *steps(0, 3, 0.0, 1.0))
    with (folder.work("a") / PROGRESS).open("a") as stream:
        stream.write('[1]\n{"time": "x", "step": 1}\n{"time": 9, "step": "x", "steps": 3}\n{"time": 3, "st')
    assert progress_of(folder, "a", now=3.0).step == 3


def test_a_point_without_progress_has_none(folder):
    assert progress_of(folder, "a") is None


def test_a_disk_that_takes_nothing_stops_no_training(tmp_path):
    (tmp_path / "file").write_text("")
    ProgressFile(tmp_path / "file" / PROGRESS).phase(TRAINING)
