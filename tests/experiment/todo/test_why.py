"""Why a point runs, in words: new, changed keys, changed modules, failed before, damaged files."""

from __future__ import annotations

import json

import finished_grid as finished
import pytest

from blast.experiment.plan.paths import GridFolder
from blast.experiment.records import code_notes, state
from blast.experiment.records.code_notes import note_code
from blast.experiment.records.fingerprint import module_digests
from blast.experiment.records.record import make_record, write_record
from blast.experiment.todo import why
from blast.experiment.todo.outlook import describe, outlook_of
from blast.experiment.todo.todo import find_left
from blast.experiment.todo.why import Kind, reasons

DENSE, PRUNED = "vit-nano.digits.dense.seed0", "vit-nano.digits.blast.s90.b16.seed0"
VISION = {
    "grid": [{"architectures": ["vit-nano"], "datasets": ["digits"], "sparsity": [0, 0.9], "blocks": [16]}],
    "benchmarks": [],
}


@pytest.fixture
def folder(tmp_path) -> GridFolder:
    """A grid of two trained points that are done."""
    folder = GridFolder(tmp_path / "results" / "made")
    _, plan = finished.planned(finished.values("made", **VISION))
    for point in plan.points.values():
        finished.write_point(point, folder)
    return folder


def told(folder: GridFolder, **changes) -> dict[str, why.Why]:
    _, plan = finished.planned(finished.values("made", **VISION | changes))
    return reasons(find_left(plan, folder, finished.STORE), folder)


def test_a_finished_grid_runs_nothing(folder):
    assert told(folder) == {}


def test_a_point_without_a_record_is_new(folder):
    folder.record(PRUNED).unlink()
    assert told(folder) == {PRUNED: (Kind.NEW, "new")}


def test_a_changed_key_is_named_with_its_old_and_its_new_value(folder):
    training = {"default": {"steps": 30, "batch": 16, "learning_rate": 1e-3, "evaluate_every": 10}}
    found = told(folder, training=training)
    assert found[DENSE] == (Kind.SETTINGS, "training.steps 20 → 30")
    assert found[PRUNED].sentence.startswith("sparsify.steps 20 → 30, training.steps 20 → 30")


def test_a_changed_key_of_the_evaluation_says_that_only_the_evaluation_is_made_again(folder):
    found = told(folder, evaluation={"items": 20, "limit": 10})
    assert found[DENSE] == (Kind.SETTINGS, "only its evaluation is made again: evaluation.limit 384 → 10")


def test_changed_modules_are_named(folder, monkeypatch):
    _, plan = finished.planned(finished.values("made", **VISION))
    for point in plan.points.values():
        note_code(folder, point)
    edited = {DENSE: {"blast.training.step": "other"}, PRUNED: {"blast.training.step": "other", "blast.new": "0"}}
    now = {name: module_digests(point) | edited[name] for name, point in plan.points.items()}
    monkeypatch.setattr(code_notes, "module_digests", lambda point: now[point.id])
    for part in ("fingerprint", "training_fingerprint"):
        monkeypatch.setattr(state, part, lambda point: "sha256:0")
    found = told(folder)
    assert found[DENSE] == (Kind.CODE, "changed: blast.training.step")
    assert found[PRUNED] == (Kind.CODE, "changed: blast.new, blast.training.step")


@pytest.mark.parametrize("note", ["{", "[]", '{"a": 1}'])
def test_a_note_of_code_that_cannot_be_read_is_no_error(folder, monkeypatch, note):
    _, plan = finished.planned(finished.values("made", **VISION))
    note_code(folder, plan.points[DENSE])
    (file,) = (folder.root / "code").iterdir()
    file.write_text(note)
    for part in ("fingerprint", "training_fingerprint"):
        monkeypatch.setattr(state, part, lambda point: "sha256:0")
    assert told(folder)[DENSE] == (Kind.CODE, "its code changed since its record was made")


def test_a_failed_point_tells_its_cause_also_after_the_verdict_moved_its_record(folder):
    _, plan = finished.planned(finished.values("made", **VISION))
    record = make_record(
        plan.points[DENSE], status="failed", cause="out of memory; use less.", result={}, run={"wall_s": 1}
    )
    write_record(folder, record)
    assert told(folder) == {DENSE: (Kind.FAILED, "out of memory; use less.")}
    folder.failed(DENSE).parent.mkdir()
    folder.record(DENSE).rename(folder.failed(DENSE))
    assert told(folder)[DENSE] == (Kind.FAILED, "it failed: out of memory; use less.")


def test_a_damaged_record_is_a_damaged_file(folder):
    folder.record(DENSE).write_text("{")
    assert told(folder) == {DENSE: (Kind.FILE, "its record is damaged")}


def test_a_dense_point_whose_checkpoint_is_missing_runs_before_the_new_point_that_needs_it(folder):
    one_shot = {**VISION["grid"][0], "methods": ["one_shot"]}
    record = json.loads(folder.record(DENSE).read_text())
    (folder.work(DENSE) / "checkpoint" / "blast.safetensors").unlink()
    assert record["status"] == "ok"
    found = told(folder, grid=[one_shot])
    assert found.pop(DENSE) == (Kind.FILE, "its checkpoint is missing, and points that run need it")
    assert {each.kind for each in found.values()} == {Kind.NEW}


def lines(folder: GridFolder, every: bool = False, **changes) -> list[str]:
    config, plan = finished.planned(finished.values("made", **VISION | changes))
    return list(describe(outlook_of(config, plan, folder), every))


def test_a_plan_counts_what_runs_and_what_is_kept_and_says_what_its_cost_rests_on(folder, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    seeds = {**VISION["grid"][0], "seeds": [0, 1, 2, 3, 4, 5]}
    found = lines(folder, grid=[seeds])
    assert found[0] == "10 to run, 2 kept: 10 new"
    assert "      … and 6 more (--list names them)" in found
    assert any(line.startswith("cost: about 0.0035 core-hours, no GPU-hours, ") for line in found)
    assert "  10 points by records of points like them (2 of grid 'made')" in found
    assert sum(line.startswith("      ") for line in lines(folder, every=True, grid=[seeds])) == 10


def test_a_plan_of_points_unlike_any_record_says_that_its_cost_is_a_guess(tmp_path):
    found = lines(GridFolder(tmp_path / "results" / "none"))
    assert found[0] == "2 to run, 0 kept: 2 new"
    assert any(line.startswith("  2 points by a guess, as no record is like them: ") for line in found)


def test_the_records_of_other_grids_serve_too(folder, tmp_path):
    assert any("of grid 'made'" in line for line in lines(GridFolder(tmp_path / "results" / "other")))


def test_a_plan_of_a_finished_grid_has_nothing_but_what_its_files_lack(folder):
    assert lines(folder)[0] == "0 to run, 2 kept"
