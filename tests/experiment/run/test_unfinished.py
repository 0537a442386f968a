"""A benchmark whose time ran out: its numbers are kept, the verdict lists it, and the next run redoes it."""

from __future__ import annotations

from dataclasses import replace

import fake_worker
import pytest

from blast.benchmark.settings import settings_of
from blast.experiment.cli import main
from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.records.fingerprint import fingerprint
from blast.experiment.records.record import make_record, read_record
from blast.experiment.records.rows import record_rows
from blast.experiment.records.state import Left, state_of
from blast.experiment.run.job import finished, run_points
from blast.experiment.run.progress import headline
from blast.files import write_json

NAME = "mlp-gpt2-nano.float32.s80.b16.seed0"
SENTENCE = "its time was over before 64 tokens were timed; run again."


def point() -> Point:
    settings = {"suite": "mlp", "tokens": [4], "dtype": "float32", "repeats": 2} | settings_of("mlp")
    return Point(
        id=NAME, grid="t", stage="benchmark", architecture="gpt2-nano", method="blast", sparsity=0.8, block=(16, 16),
        benchmark=settings,
    )  # fmt: skip


def entry(tokens: int, value: float | None, **more) -> dict:
    return {"metric": "latency", "unit": "ms", "value": value, "provider": "ours", "tokens": tokens} | more


@pytest.fixture
def folder(tmp_path) -> GridFolder:
    """A grid of one point that was to measure 4 and 64 tokens; its record has only 4."""
    folder = GridFolder(tmp_path / "t")
    metrics = [entry(4, 1.5), entry(64, None, status="not run", setting={"cause": "no time"}, unfinished=True)]
    result = {"metrics": metrics, "curves": {}, "sparsity": {}, "unfinished": SENTENCE}
    run = {"fingerprint": fingerprint(point()), "hardware": "cpu", "wall_s": 1.0}
    write_json(folder.record(NAME), make_record(point(), status="ok", result=result, run=run))
    write_json(folder.root / "plan.json", [point().to_dict()])
    return folder


def test_its_rows_are_kept_and_the_progress_line_says_what_is_missing(folder):
    record = read_record(folder.record(NAME))
    assert [(row["tokens"], row["status"], row["value"]) for row in record_rows(record)] == [
        (4, "ok", 1.5),
        (64, "not run", None),
    ]
    assert headline(record) == f"1.5 ms, UNFINISHED: {SENTENCE}"


def test_the_verdict_names_it_in_one_sentence_and_keeps_its_record(folder, capsys):
    before = folder.record(NAME).read_bytes()
    assert main(["verdict", "--grid-dir", str(folder.root), "--out", str(folder.root / "verdict.txt")]) == 1
    assert f"FAILED point {NAME}: {SENTENCE}" in capsys.readouterr().err
    assert folder.record(NAME).read_bytes() == before
    assert not (folder.root / "verdict.txt").exists()


def test_a_point_that_failed_before_its_run_was_killed_is_run_again(folder):
    run = {"fingerprint": fingerprint(point()), "hardware": "cpu", "wall_s": 1.0}
    failed = make_record(point(), status="failed", result={}, cause="the disk is full.", run=run)
    write_json(folder.record(NAME), failed)
    assert state_of(point(), folder)[:3] == (Left.ALL, "the disk is full.", None)


@pytest.mark.slow
def test_the_next_run_redoes_it_and_then_nothing(folder):
    assert state_of(point(), folder).reason == SENTENCE
    main(["verdict", "--grid-dir", str(folder.root), "--out", str(folder.verdict)])
    assert finished(folder, point()) is None
    assert run_points([point()], folder, folder.root / "log") == 0
    assert state_of(point(), folder).left is Left.NOTHING
    assert "unfinished" not in finished(folder, point())["result"]
    assert main(["verdict", "--grid-dir", str(folder.root), "--out", str(folder.verdict)]) == 0
    # To redo a point its record is removed.
    folder.record(NAME).unlink()
    assert state_of(point(), folder)[:3] == (Left.ALL, "it has no record", None)


def test_a_job_that_leaves_a_point_unfinished_counts_it_as_a_failure(folder, tmp_path, monkeypatch):
    lost = {"unfinished": "its time was over."}
    monkeypatch.setattr("blast.experiment.run.child.worker_command", fake_worker.command)
    assert run_points([replace(point(), data={"result": lost})], GridFolder(tmp_path / "new"), tmp_path / "log") == 1
