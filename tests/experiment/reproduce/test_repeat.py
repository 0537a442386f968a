"""`blast repeat`: what differs from a record is told before it runs again, and each result after it."""

from __future__ import annotations

import json
from pathlib import Path

import fake_records as fake
import pytest

from blast.experiment.cli import main
from blast.experiment.plan.grid import Plan
from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.records.record import make_record, read_record, write_record
from blast.experiment.reproduce import repeat
from blast.experiment.reproduce.repeat import describe, judge
from blast.experiment.run.job import run_points

SETTINGS = {"steps": 4, "batch": 8, "learning_rate": 1e-3, "evaluate_every": 2, "evaluate_limit": 4}


def write(folder: Path, value: float, seed: int = 0, curve: float = 1.0) -> tuple[dict, GridFolder]:
    """A record of an accuracy and a time."""
    point = fake.make_point("vit-nano", "digits", "dense", 0.0, seed)
    metrics = [{"metric": "top1", "value": value, "unit": "fraction", "better": "higher"},
               {"metric": "latency", "value": value * 7, "unit": "ms"}]  # fmt: skip
    result = {"metrics": metrics, "curves": {"train_loss": {"step": [0], "value": [curve]}}}
    record = make_record(point, status="ok", result=result, run=fake.run_part())
    write_record(GridFolder(folder), record)
    return record, GridFolder(folder)


def judged(tmp_path: Path, value: float, again: float, other_seed: float | None = None) -> repeat.Repeated:
    record, source = write(tmp_path / "source", value)
    if other_seed is not None:
        write(tmp_path / "source", other_seed, seed=1)
    new, own = write(tmp_path / "own", again, curve=2.0)
    return judge(record, new, source, own)


@pytest.mark.parametrize(
    ("again", "other_seed", "verdict", "good"),
    [
        (0.5 * (1 + 1e-7), None, repeat.ROUNDING, True),
        (0.52, 0.55, repeat.SEEDS, True),
        (0.6, 0.55, "differs, by more than the spread of seeds (0.05)", False),
        (0.6, None, repeat.UNKNOWN, False),
    ],
)
def test_a_difference_is_measured_by_rounding_and_by_the_spread_of_seeds(again, other_seed, verdict, good, tmp_path):
    found = judged(tmp_path, 0.5, again, other_seed)
    assert found.verdicts == [verdict, repeat.TIME]
    assert found.good is good
    assert found.parts == {"curve train_loss": False}
    assert not found.identical
    lines = list(describe(found))
    assert lines[-1].startswith("no result differs" if good else "NOT equal")


def test_a_record_that_is_the_same_to_the_last_bit_is_equal(tmp_path):
    record, source = write(tmp_path / "source", 0.5)
    again, own = write(tmp_path / "own", 0.5)
    found = judge(record, again, source, own)
    assert found.identical
    assert found.good
    assert next(describe(found)).startswith("equal: all results are those of the record")


def real_point() -> Point:
    return Point(
        id="vit-nano.digits.dense.seed0", grid="tiny", stage="train", architecture="vit-nano", dataset="digits",
        method="dense", training=SETTINGS, evaluation={"batch": 64, "limit": 16},
    )  # fmt: skip


@pytest.mark.slow
def test_a_point_that_runs_again_is_equal_and_code_and_data_are_compared(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    grid = GridFolder(tmp_path / "results" / "tiny")
    assert run_points([real_point()], grid, tmp_path / "log") == 0
    record = grid.record(real_point().id)
    assert main(["repeat", real_point().id, "--results", "results"]) == 0
    out = capsys.readouterr().out
    assert "  code: equal (" in out
    assert "  lock file: equal" in out
    assert "  data digits: equal (" in out
    assert "equal: all results are those of the record, to the last bit" in out
    # A record of other code and data says so before anything runs.
    values = read_record(record)
    values["result"]["dataset"]["digest"] = "sha256:" + "1" * 64
    values["run"]["fingerprint"] = "sha256:" + "2" * 64
    point = Point.from_dict(values["point"])
    write_record(grid, make_record(point, status="ok", result=values["result"], run=values["run"]))
    assert main(["repeat", str(record), "--check"]) == 1
    out = capsys.readouterr().out
    assert "  code: differs, 222222222222 in the record" in out
    assert "  data digits: differs, 111111111111" in out


def test_the_dense_model_of_a_record_is_taken_from_its_grid(tmp_path, monkeypatch):
    dense = fake.make_point("vit-nano", "digits", "dense", 0.0, 0)
    pruned = Point.from_dict(fake.make_point("vit-nano", "digits", "one_shot", 0.9, 0).to_dict() | {"start": "parent"})
    source, own = GridFolder(tmp_path / "source"), GridFolder(tmp_path / "own")
    write_record(source, make_record(dense, status="ok", result={}, run=fake.run_part()))
    record = make_record(pruned, status="ok", result={}, run=fake.run_part())
    write_record(source, record)
    ran: list[Plan] = []

    def rerun(plan: Plan, ids: list[str], folder: GridFolder) -> int:
        ran.append(plan)
        write_record(folder, record)
        return 0

    monkeypatch.setattr(repeat, "rerun", rerun)
    said: list[str] = []
    assert repeat.run_again(record, source, own, said.append) == read_record(source.record(pruned.id))
    assert list(ran[0].points) == [dense.id, pruned.id]
    # Without a checkpoint it runs again.
    assert said == [f"{dense.id}: its checkpoint is not in {source.root}, so it runs again first"]


def test_what_is_no_record_is_refused(tmp_path, capsys):
    grid = fake.write_grid(tmp_path / "default")
    assert main(["repeat", "default", "--results", str(tmp_path)]) == 2
    assert "'default' is no record; give the file of one" in capsys.readouterr().err
    name = json.loads(next((grid / "records").glob("vit*.json")).read_text())["point"]["id"]
    assert main(["repeat", name[:-1], "--results", str(tmp_path)]) == 2
    assert "did you mean '" in capsys.readouterr().err
