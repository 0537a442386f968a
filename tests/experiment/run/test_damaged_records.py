"""A damaged record wedges nothing: its point runs again, and no view, job or verdict has to read what was put aside."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import fake_records as fake
import fake_worker
import pytest
import torch

from blast.checkpoint.checkpoint import save
from blast.errors import BlastError
from blast.evaluation.requests import RequestFile
from blast.experiment.cli import main
from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.records.put_aside import put_aside
from blast.experiment.records.record import make_record, read_record, write_record
from blast.experiment.records.table import load_table
from blast.experiment.run import child, job
from blast.experiment.run.job import run_points
from blast.experiment.run.verdict import judge_grid
from blast.files import file_digest, write_json

POINT = fake.make_point("vit-nano", "digits", "dense", 0.0, 0)
OTHER = fake.make_point("vit-nano", "digits", "blast", 0.8, 0)


def half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:200])


def one_digit(file: Path) -> None:
    text = file.read_text()
    assert '"value": 0' in text
    file.write_text(text.replace('"value": 0', '"value": 1', 1))


def of_another_point(file: Path) -> None:
    write_json(file, fake.make_training_record(OTHER)[0])


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def a_link(file: Path) -> None:
    file.rename(file.with_suffix(".real"))
    file.symlink_to(file.with_suffix(".real"))


def a_link_to_nothing(file: Path) -> None:
    file.unlink()
    file.symlink_to("nowhere")


def empty(file: Path) -> None:
    file.write_bytes(b"")


DAMAGES = [half, empty, one_digit, of_another_point, a_folder, a_link, a_link_to_nothing]


@pytest.fixture
def grid(tmp_path) -> GridFolder:
    """A grid of two points that are done."""
    folder = GridFolder(tmp_path / "results" / fake.GRID)
    write_json(folder.plan, [POINT.to_dict(), OTHER.to_dict()])
    write_json(folder.data("digits"), {"status": "ok", "cause": None, "facts": {}})
    for point in (POINT, OTHER):
        write_record(folder, fake.make_training_record(point)[0])
    assert judge_grid(folder) == (2, [])
    return folder


@pytest.mark.fault(
    fault="A record is half-written, altered, of another point, a link or a folder.",
    topic="Files that are damaged or come from elsewhere",
    happens="It goes to `damaged/`. Its point runs again.",
    reads="point …: its record was damaged and is now …/damaged/….json; run again: only this point is redone.",
    lost="nothing",
)
@pytest.mark.fault(
    fault="A table is drawn while a record is damaged.",
    topic="Files that are damaged or come from elsewhere",
    happens="It is drawn. The point counts as not run.",
    reads="blast: left out: …/records/….json: …; …",
    lost="nothing",
)
@pytest.mark.parametrize("damage", DAMAGES)
def test_the_verdict_puts_a_damaged_record_where_nothing_reads_it(grid, damage, tmp_path, capsys, reads):
    whole = grid.record(POINT.id).read_bytes()
    damage(grid.record(POINT.id))
    # Views are drawn of what can be read, and say what they left out.
    assert set(load_table(grid.root, tmp_path)["status"]) == {"ok", "not run"}
    said = capsys.readouterr().err
    assert f"left out: {grid.record(POINT.id)}: " in said
    reads(said)
    _, sentences = judge_grid(grid)
    assert len(sentences) == 1
    reads(sentences[0])
    assert sentences[0] == (
        f"point {POINT.id}: its record was damaged and is now {grid.damaged(POINT.id)}; "
        "run again: only this point is redone."
    )
    assert not grid.record(POINT.id).exists()
    assert [file.name for file in grid.damaged("x").parent.iterdir()] == [f"{POINT.id}.json"]
    assert not (grid.root / "failed").exists()
    # The point is made again, and all is as it was.
    grid.record(POINT.id).write_bytes(whole)
    assert judge_grid(grid) == (2, [])
    assert set(load_table(grid.root, tmp_path)["status"]) == {"ok"}
    assert not capsys.readouterr().err


def test_what_an_older_version_put_into_failed_is_left_out_of_every_table(grid, tmp_path):
    before = load_table(grid.root, tmp_path)
    grid.failed(POINT.id).parent.mkdir()
    shutil.copy(grid.record(POINT.id), grid.failed(POINT.id))
    half(grid.failed(POINT.id))
    assert load_table(grid.root, tmp_path).equals(before)
    grid.record(POINT.id).unlink()
    assert set(load_table(grid.root, tmp_path)["status"]) == {"ok", "not run"}


def test_a_damaged_record_of_an_earlier_plan_stops_no_table(grid, tmp_path):
    before = load_table(grid.root, tmp_path)
    grid.record("a.point.of.before").write_text("{")
    assert load_table(grid.root, tmp_path).equals(before)
    assert judge_grid(grid) == (2, [])


def test_damaged_records_that_are_put_aside_do_not_replace_each_other(grid):
    for number in range(3):
        grid.record(POINT.id).write_text(f"damage {number}")
        place = put_aside(grid, POINT.id)
        assert place.read_text() == f"damage {number}"
    names = [f"{POINT.id}.json", f"{POINT.id}.2.json", f"{POINT.id}.3.json"]
    assert sorted(file.name for file in grid.damaged("x").parent.iterdir()) == sorted(names)


@pytest.mark.fault(
    fault="Language metrics are damaged.",
    topic="Files that are damaged or come from elsewhere",
    happens="They are computed again.",
    reads=(
        "…: this file of language metrics is damaged or half-written; delete it and run again: "
        "only the metrics are computed again."
    ),
    lost="nothing",
)
def test_damaged_language_metrics_are_a_failed_row_and_are_computed_again(grid, tmp_path, reads):
    grid.language(POINT.id).parent.mkdir()
    grid.language(POINT.id).write_text("{")
    table = load_table(grid.root, tmp_path)
    assert list(table[table["status"] == "failed"]["task"]) == ["language"]
    (sentence,) = judge_grid(grid)[1]
    assert "this file of language metrics is damaged or half-written" in sentence
    reads(sentence)
    assert judge_grid(grid) == (2, [])


@pytest.fixture
def machine(monkeypatch, tmp_path) -> GridFolder:
    """A folder whose points are run by a stand-in for the process that trains."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(child, "worker_command", fake_worker.command)
    monkeypatch.setattr(job, "fingerprint", lambda point: "code")
    monkeypatch.setattr(job, "note_code", lambda folder, point: None)
    folder = GridFolder(tmp_path / "grid")
    folder.root.mkdir()
    return folder


def started(folder: GridFolder) -> list[str]:
    lines = (folder.root / "journal.txt").read_text().splitlines()
    return [line.split()[1] for line in lines if line.startswith("start")]


def trained(name: str, **values) -> Point:
    values = {"stage": "train", "dataset": "digits", "training": {"processes": 1}} | values
    return Point(id=name, grid="t", architecture="vit-nano", **values)


@pytest.mark.parametrize("damage", [half, a_folder, a_link, of_another_point])
def test_a_job_redoes_a_point_whose_record_is_damaged_and_keeps_what_was_there(machine, damage):
    point = trained("one")
    assert run_points([point], machine, machine.root / "log") == 0
    good = read_record(machine.record("one"))["record_digest"]
    damage(machine.record("one"))
    assert run_points([point], machine, machine.root / "log") == 0
    assert started(machine) == ["one", "one"]
    assert read_record(machine.record("one"))["record_digest"] == good
    assert len(list(machine.damaged("x").parent.iterdir())) == 1


def weights(folder: Path) -> Path:
    return folder / "blast.safetensors"


CHECKPOINT_DAMAGES = {
    "truncated": lambda folder: half(weights(folder)),
    "one byte changed": lambda folder: weights(folder).write_bytes(weights(folder).read_bytes()[:-1] + b"x"),
    "empty": lambda folder: weights(folder).write_bytes(b""),
    "replaced by a folder": lambda folder: a_folder(weights(folder)),
    "without its manifest": lambda folder: (folder / "blast.json").unlink(),
    "with a damaged manifest": lambda folder: half(folder / "blast.json"),
    "gone": shutil.rmtree,
    "a link": lambda folder: a_link(folder),
}


@pytest.mark.fault(
    fault="The checkpoint of a parent is damaged or missing.",
    topic="Files that are damaged or come from elsewhere",
    happens="The parent runs again first.",
    reads="…: its checkpoint …, so it runs again before what needs it",
    lost="time",
)
@pytest.mark.parametrize("damage", CHECKPOINT_DAMAGES.values(), ids=CHECKPOINT_DAMAGES.keys())
def test_a_damaged_checkpoint_of_a_parent_is_made_again_before_what_needs_it(machine, damage, capsys, reads):
    parent, needing = trained("parent"), trained("child", parent="parent", start="parent")
    folder = machine.work("parent") / "checkpoint"
    save(torch.nn.Sequential(torch.nn.Linear(16, 16)), folder)
    artifacts = {"checkpoint": {"path": "checkpoint", "digest": file_digest(weights(folder))}}
    result = {"metrics": [], "artifacts": artifacts}
    write_record(machine, make_record(parent, status="ok", result=result, run={"wall_s": 1, "fingerprint": "code"}))

    assert run_points([trained("other", parent="parent", start="parent")], machine, machine.root / "log") == 0
    assert started(machine) == ["other"], "a whole checkpoint is not made again"
    damage(folder)
    assert run_points([needing], machine, machine.root / "log") == 0
    assert started(machine) == ["other", "parent", "child"]
    said = capsys.readouterr().out
    assert "parent: its checkpoint " in said
    reads(said)


def test_a_parent_whose_record_is_damaged_runs_again_as_the_plan_says(machine):
    parent, needing = trained("parent"), trained("child", parent="parent", start="parent")
    write_json(machine.plan, [parent.to_dict(), needing.to_dict()])
    machine.record("parent").parent.mkdir()
    machine.record("parent").write_text("{")
    assert run_points([needing], machine, machine.root / "log") == 0
    assert started(machine) == ["parent", "child"]
    machine.record("parent").write_text("{")
    machine.record("child").unlink()
    machine.plan.unlink()
    with pytest.raises(BlastError, match=r"record is damaged or half-written; .*, or give the point 'parent' too"):
        run_points([needing], machine, machine.root / "log")


def test_the_command_says_what_was_damaged_and_the_second_run_finds_nothing(grid, capsys):
    half(grid.record(POINT.id))
    words = ["verdict", "--grid-dir", str(grid.root), "--out", str(grid.root / "verdict.txt")]
    assert main(words) == 1
    assert f"is now {grid.damaged(POINT.id)}" in capsys.readouterr().err
    write_record(grid, fake.make_training_record(POINT)[0])
    assert main(words) == 0


@pytest.mark.fault(
    fault="The requests of lm-eval are damaged.",
    topic="Files that are damaged or come from elsewhere",
    happens="They are removed, and built again by the next run.",
    reads="requests of …: …; delete it and build the requests again.",
    lost="nothing",
)
@pytest.mark.parametrize("damage", [half, empty, a_folder, a_link])
def test_damaged_requests_are_removed_where_something_failed_and_whole_ones_stay(grid, damage, reads):
    requests, stamp = grid.requests("digits"), grid.requests_key("digits")
    RequestFile(["a"], [], {"a.jsonl": [{"text": f"{n:x}"} for n in range(999)]}).write(requests)
    stamp.touch()
    grid.record(POINT.id).unlink()
    assert len(judge_grid(grid)[1]) == 1
    assert requests.is_file()
    damage(requests)
    (_, said) = judge_grid(grid)[1]
    assert said.startswith("requests of digits: ")
    reads(said)
    assert not requests.exists()
    assert not stamp.exists()


@pytest.mark.fault(
    fault="The scores of a point changed.",
    topic="Files that are damaged or come from elsewhere",
    happens="The point runs again.",
    reads="point …: its scores changed since the record was made; run again: only this point is redone.",
    lost="time",
)
def test_a_point_whose_scores_are_damaged_runs_again(grid, reads):
    point = fake.make_point("gpt2-nano", "pystdlib", "dense", 0.0, 0)
    point = replace(point, evaluation={"tasks": ["a"]})
    scores = grid.work(point.id) / "scores.json"
    scores.parent.mkdir(parents=True)
    scores.write_text("scores")
    write_json(grid.plan, [point.to_dict()])
    write_json(grid.data("pystdlib"), {"status": "ok", "cause": None, "facts": {}})
    artifacts = {"scores": {"path": "scores.json", "digest": file_digest(scores)}}
    write_record(
        grid, make_record(point, status="ok", result={"metrics": [], "artifacts": artifacts}, run={"wall_s": 1})
    )
    failed = {"status": "failed", "cause": "its scores cannot be read."}
    write_json(grid.language(point.id), failed)
    assert judge_grid(grid)[1] == [f"language metrics of {point.id}: its scores cannot be read."]
    assert grid.record(point.id).is_file()
    scores.write_text("other")
    write_json(grid.language(point.id), failed)
    said = judge_grid(grid)[1][1]
    reads(said)
    assert (
        said == f"point {point.id}: its scores changed since the record was made; run again: only this point is redone."
    )
    assert not grid.record(point.id).exists()
