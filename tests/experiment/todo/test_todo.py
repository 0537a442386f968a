"""What is left to do in a grid is read from the contents of its files."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import finished_grid as finished
import pytest

from blast.errors import BlastError
from blast.experiment.plan.grid import expand
from blast.experiment.plan.jobs import MOST_JOBS, make_jobs
from blast.experiment.plan.paths import GridFolder
from blast.experiment.records import state
from blast.experiment.records.record import read_record
from blast.experiment.todo.todo import Todo, begin_run, find_todo
from blast.experiment.todo.views import find_views, view_keys
from blast.experiment.tracking import imports
from blast.files import write_atomically, write_json

DENSE, PRUNED = "vit-nano.digits.dense.seed0", "vit-nano.digits.blast.s90.b16.seed0"
TEXT = "gpt2-nano.pystdlib.dense.seed0"
ALL_VIEWS = {"of_all", "of_mlp", "of_training"}
GRID = {"architectures": ["vit-nano"], "datasets": ["digits"], "blocks": [16]}


class Place:
    """A finished grid with three views: of trained points, of the suite `mlp`, and of all rows."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder = root, GridFolder(root / "results" / "made")
        self.views, self.drawn, self.recorded = root / "paper_figures" / "views", root / "drawn", root / "recorded"
        write_atomically(self.views / "of_training.py", 'SUITES = ("train",)\ndef draw(table): ...\n')
        write_atomically(self.views / "of_mlp.py", 'SUITES = ("mlp",)\ndef rows(table): ...\n')
        write_atomically(self.views / "of_all.py", "def rows(table): ...\n")
        write_atomically(self.recorded / "cpu" / "training.csv", "suite\n")
        finished.write_finished(finished.values("made"), self.folder, self.views, self.drawn, self.recorded)

    def todo(self, **changes) -> Todo:
        config, plan = finished.planned(finished.values("made", **changes))
        views = find_views(self.views, self.drawn)
        return find_todo(config, plan, self.folder, finished.STORE, views, self.recorded)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Place:
    return Place(tmp_path_factory.mktemp("made"))


@pytest.fixture
def place(made, tmp_path) -> Place:
    """A copy, with other times."""
    shutil.copytree(made.root, tmp_path / "copy", copy_function=shutil.copy)
    copy = object.__new__(Place)
    copy.__dict__ |= {
        name: tmp_path / "copy" / path.relative_to(made.root)
        for name, path in made.__dict__.items()
        if isinstance(path, Path)
    }
    copy.folder = GridFolder(tmp_path / "copy" / "results" / "made")
    return copy


def ids(jobs) -> set[str]:
    return {name for job in jobs for name in job.ids}


def summary(todo: Todo) -> tuple:
    """Points that run, whose metrics are made, and that are imported; views that are drawn."""
    views = {*todo.views, *todo.later_views}
    return ids(todo.jobs), ids(todo.language), ids(todo.mlflow), views


def content(root: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in root.rglob("*") if file.is_file()}


def test_nothing_is_left_of_a_finished_grid_that_was_copied(place):
    todo = place.todo()
    assert summary(todo) == (set(), set(), set(), set())
    assert not todo.changes_results
    assert (todo.plan, todo.datasets, todo.requests, todo.why) == (False, (), (), {})


@pytest.mark.fault(
    fault="The clock was wrong, or the times of files changed.",
    topic="What a run plans",
    happens="Nothing runs.",
    lost="nothing",
)
@pytest.mark.parametrize("time", [0, 4_000_000_000])
def test_the_times_of_files_count_for_nothing(place, time):
    for file in sorted(place.root.rglob("*"))[::2]:
        os.utime(file, (time, time))
    assert summary(place.todo()) == (set(), set(), set(), set())


def test_finding_out_writes_and_deletes_nothing(place):
    before = content(place.root)
    assert place.todo(points_per_job={"default": 1}, grid=[{**GRID, "sparsity": [0, 0.5]}]).jobs
    assert content(place.root) == before


def test_one_sparsity_more_runs_the_new_points_and_redraws_the_views_of_their_suite(place):
    grid = finished.values("made")["grid"]
    todo = place.todo(grid=[{**GRID, "sparsity": [0, 0.8, 0.9]}, *grid[1:]])
    new = {"vit-nano.digits.blast.s80.b16.seed0"}
    assert summary(todo) == (new, set(), new, {"of_all", "of_training"})
    assert [job.name for job in todo.jobs] == sorted(new)
    assert todo.plan
    assert todo.datasets == ()


def test_jobs_have_the_names_of_their_points_whatever_else_there_is():
    def names(sparsity, seeds):
        blocks = [{**GRID, "sparsity": sparsity, "seeds": seeds}]
        _, plan = finished.planned(finished.values("made", grid=blocks, points_per_job={"default": 1}))
        return {job.ids: job.name for job in plan.jobs}

    few, many = names([0, 0.9], [0]), names([0, 0.5, 0.9], [0, 1])
    assert few.items() <= many.items()


@pytest.mark.fault(
    fault="A task gets more items.",
    topic="What a run plans",
    happens="The checkpoint is evaluated again. Nothing is trained.",
    reads="its settings of the evaluation changed",
    lost="nothing",
)
def test_more_items_leave_the_training(place, reads):
    todo = place.todo(evaluation={"items": 30})
    points = {TEXT, "gpt2-nano.pystdlib.blast.s90.b16.seed0"}
    assert summary(todo) == (points, points, points, {"of_all", "of_training"})
    assert todo.requests == ("pystdlib",)
    reads(" ".join(todo.why))
    assert todo.why == {"its settings of the evaluation changed": 2}


@pytest.mark.fault(
    fault="The code of the pruning was edited.",
    topic="What a run plans",
    happens="Pruned points run again. Dense ones do not.",
    reads="its code changed",
    lost="nothing",
)
def test_an_edit_of_the_pruning_leaves_dense_points(place, monkeypatch, reads):
    known = state.fingerprint

    def edited(point):
        return "sha256:edited" if point.sparsify else known(point)

    monkeypatch.setattr(state, "fingerprint", edited)
    monkeypatch.setattr(state, "training_fingerprint", edited)
    todo = place.todo()
    assert ids(todo.jobs) == {PRUNED, "gpt2-nano.pystdlib.blast.s90.b16.seed0"}
    reads(" ".join(todo.why))
    assert todo.why == {"its code changed": 2}


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100])


def _change_a_digit(file: Path) -> None:
    text = file.read_text()
    assert "0.5" in text
    file.write_text(text.replace("0.5", "0.6"))


def _change_a_time(file: Path) -> None:
    file.write_text(file.read_text().replace("1.25", "1.35"))


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(
            _truncate,
            marks=pytest.mark.fault(
                fault="A record was cut.",
                topic="What a run plans",
                happens="Its point runs again, and no other.",
                reads="its record is damaged",
                lost="nothing",
            ),
        ),
        pytest.param(
            _change_a_digit,
            marks=pytest.mark.fault(
                fault="A digit of a result was changed in its record.",
                topic="What a run plans",
                happens="Its point runs again, and no other.",
                reads="its record is damaged",
                lost="nothing",
            ),
        ),
        pytest.param(
            _change_a_time,
            marks=pytest.mark.fault(
                fault="A time or the machine was changed in a record.",
                topic="What a run plans",
                happens="Its point runs again, and no other.",
                reads="its record was changed by hand",
                lost="nothing",
            ),
        ),
        pytest.param(
            Path.unlink,
            marks=pytest.mark.fault(
                fault="A record was removed.",
                topic="What a run plans",
                happens="Its point runs again, and no other.",
                reads="it has no record",
                lost="nothing",
            ),
        ),
    ],
)
def test_a_damaged_record_is_made_again_and_no_other(place, reads, damage):
    damage(place.folder.record(DENSE))
    todo = place.todo()
    reads(" ".join(todo.why))
    assert summary(todo) == ({DENSE}, set(), {DENSE}, {"of_all", "of_training"})


@pytest.mark.fault(
    fault="Language metrics were removed, changed or cut.",
    topic="What a run plans",
    happens="They are made again from the scores, and imported. Nothing is trained.",
    lost="nothing",
)
@pytest.mark.parametrize("damage", [_truncate, _change_a_digit, Path.unlink])
def test_damaged_metrics_are_made_again_from_the_scores(place, damage):
    damage(place.folder.language(TEXT))
    assert summary(place.todo()) == (set(), {TEXT}, {TEXT}, {"of_all", "of_training"})


def test_metrics_that_were_left_of_a_point_without_tasks_are_imported_once(place):
    write_json(place.folder.language(DENSE), {"status": "ok", "metrics": []})
    assert summary(place.todo())[:3] == (set(), set(), {DENSE})
    imports.Imports(place.folder, finished.STORE).add([read_record(place.folder.record(DENSE))])
    assert summary(place.todo())[:3] == (set(), set(), set())


def test_metrics_and_records_of_before_this_version_stay(place):
    language = json.loads(place.folder.language(TEXT).read_text())
    del language["digest"], language["fingerprint"]
    write_json(place.folder.language(TEXT), language)
    record = read_record(place.folder.record(TEXT))
    del record["run_digest"], record["run"]["training_fingerprint"]
    write_json(place.folder.record(TEXT), record)
    assert summary(place.todo())[:3] == (set(), set(), set())


def test_a_view_is_drawn_again_when_its_file_its_code_or_a_recorded_file_changes(place):
    (place.drawn / "of_mlp.md").unlink()
    assert place.todo().views == ("of_mlp",)
    (place.drawn / "of_all.csv").write_text("of another grid\n")
    assert set(place.todo().views) == {"of_all", "of_mlp"}
    with (place.views / "of_training.py").open("a") as code:
        code.write("COLOUR = 'red'\n")
    assert set(place.todo().views) == ALL_VIEWS


def test_a_file_of_config_redraws_the_views_that_read_it(place):
    write_atomically(place.root / "config" / "prices.csv", "gpu,price\n")
    assert set(place.todo().views) == ALL_VIEWS


def test_a_config_redraws_the_views_that_name_it_in_reads_alone(place):
    (place.views / "of_mlp.py").write_text('SUITES = ("mlp",)\nREADS = ("config/*.yaml",)\ndef rows(table): ...\n')
    views = find_views(place.views, place.drawn)
    _, plan = finished.planned(finished.values("made"))
    before = view_keys(views, plan.points, place.folder, place.recorded)
    write_atomically(place.root / "config" / "other.yaml", "name: other\n")
    after = view_keys(views, plan.points, place.folder, place.recorded)
    assert {name for name in before if after[name] != before[name]} == {"of_mlp"}


def test_a_recorded_file_redraws_all_views_and_runs_nothing(place):
    (place.recorded / "cpu" / "training.csv").write_text("suite\ntrain\n")
    assert summary(place.todo()) == (set(), set(), set(), ALL_VIEWS)
    assert not place.todo().changes_results


@pytest.mark.fault(
    fault="A note on an import is half-written.",
    topic="What a run plans",
    happens="It counts as none. What it spoke of is imported again.",
    lost="nothing",
)
@pytest.mark.fault(
    fault="The database of MLflow was deleted.",
    topic="What a run plans",
    happens="All points are imported again.",
    lost="nothing",
)
def test_another_store_gets_all_points_and_a_line_that_is_half_written_counts_as_none(place, monkeypatch):
    _, plan = finished.planned(finished.values("made"))
    with place.folder.imports.open("a") as lines:
        lines.write('{"store": "http')
    records = [read_record(place.folder.record(name)) for name in plan.points]
    asked = [(name, record["record_digest"]) for name, record in zip(plan.points, records, strict=True)]
    assert all(imports.Imports(place.folder, finished.STORE).has(*one) for one in asked)
    assert not any(imports.Imports(place.folder, "http://127.0.0.1:10").has(*one) for one in asked)
    # The database of these imports was deleted.
    gone = f"sqlite:///{place.root}/mlflow.db"
    imports.Imports(place.folder, gone).add(records)
    assert not imports.Imports(place.folder, gone).has(*asked[0])
    (place.root / "mlflow.db").touch()
    assert imports.Imports(place.folder, gone).has(*asked[0])


def test_data_and_requests_are_made_again_for_other_settings(place):
    todo = place.todo(data={"pystdlib": {"vocab_size": 1024}})
    assert todo.datasets == ("pystdlib",)
    assert todo.requests == ("pystdlib",)
    place.folder.data("digits").unlink()
    assert place.todo().datasets == ("digits",)
    assert place.todo().changes_results


@pytest.mark.fault(
    fault="`todo.json` is damaged while the workflow runs.",
    topic="What a run plans",
    happens="A process of the run stops.",
    reads="the jobs of this run cannot be read …; run the workflow again.",
    lost="nothing",
)
def test_a_new_run_has_a_number_of_its_own_and_removes_what_earlier_ones_left(place, reads):
    first = place.todo()
    begin_run(first, place.folder)
    assert Todo.read(place.folder.todo) == first
    assert place.folder.verdict.is_file()
    old = place.folder.stamp(first.run, "train", "job")
    write_atomically(old, "")
    (place.folder.runs / "train").mkdir()
    place.folder.record(DENSE).unlink()
    second = place.todo()
    assert second.run == first.run + 1
    begin_run(second, place.folder)
    assert list(place.folder.runs.iterdir()) == []
    assert not place.folder.verdict.exists()
    assert Todo.read(place.folder.todo) == second
    place.folder.todo.write_text("{")
    with pytest.raises(BlastError, match="run the workflow again") as raised:
        Todo.read(place.folder.todo)
    reads(str(raised.value))


def test_a_large_grid_has_a_thousand_jobs_at_most_and_each_point_once():
    config, plan = finished.planned(finished.values("made", benchmarks=[], points_per_job={"default": 1}))
    point = plan.points[DENSE]
    points = [replace(point, id=f"p{number}") for number in range(2 * MOST_JOBS + 1)]
    jobs = make_jobs(config, points)
    assert len(jobs) <= MOST_JOBS
    assert sorted(name for job in jobs for name in job.ids) == sorted(point.id for point in points)
    assert len({job.name for job in jobs}) == len(jobs)
    assert expand(config).jobs == plan.jobs


def test_what_is_noted_of_a_store_holds_no_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:secret@host/runs")
    assert imports.tracking_store() == "postgresql://me:***@host/runs"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert imports.tracking_store() == "results/mlflow"
