"""`blast summary`: one page that decides by a rule it tells, and says what was not measured."""

from __future__ import annotations

import json
import math
import re

import fake_records as fake
import pytest

from blast.experiment.cli import main
from blast.experiment.compare.worth import worth
from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.records.export import export_grid
from blast.experiment.records.record import make_record, write_record


@pytest.mark.parametrize(
    ("loss", "noise", "saved", "gains", "verdict"),
    [
        (1.0, 0.2, 3.0, [1.4], "yes"),
        (1.0, 0.2, 3.0, [0.9, 1.4], "yes"),
        (1.0, 0.2, 3.0, [1.01], "for memory"),
        (1.0, 0.2, 3.0, [], "for memory"),
        (1.0, 0.2, 1.0, [0.9], "no"),
        (4.0, 0.2, 3.0, [1.4], "no"),
        (2.3, 0.2, 3.0, [1.4], "undecided"),
        (1.0, math.nan, 3.0, [1.4], "undecided"),
        (-0.5, math.nan, 3.0, [1.4], "yes"),
        (math.nan, 0.2, 3.0, [1.4], "not measured"),
        (1.0, 0.2, math.nan, [], "not measured"),
    ],
)
def test_the_rule_decides(loss, noise, saved, gains, verdict):
    assert worth(loss, noise, saved, gains) == verdict


def summary(capsys, *arguments) -> str:
    assert main(["summary", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_a_grid_is_summarised_on_one_page(tmp_path, capsys):
    grid = fake.write_grid(tmp_path / "default")
    out = summary(capsys, grid, "--recorded", tmp_path / "recorded", "--json", tmp_path / "found.json")
    assert "Summary of default: 48 points done" in out
    assert f"T1: {fake.HARDWARE} (measured the grid)" in out
    assert "Rule: a sparsity is worth it if" in out
    assert len(out.splitlines()) < 60
    rows = {
        (each["method"], each["sparsity"]): each
        for each in json.loads((tmp_path / "found.json").read_text())["sparsities"]
    }
    assert rows["blast", 0.7]["worth"] == "yes"
    assert rows["blast", 0.95]["worth"] == "no"
    # gpt2 is 6 times and llama 11 times as fast at most, at 95 %.
    time = rows["blast", 0.95]["times"][fake.HARDWARE]
    assert time["highest"] == pytest.approx(11)
    assert time["cases"] == 6


def test_what_was_not_measured_says_so(tmp_path, capsys):
    grid = fake.write_grid(tmp_path / "default")
    for file in (grid / "records").glob("mlp-*.json"):
        file.unlink()
    out = summary(capsys, grid, "--recorded", tmp_path / "recorded")
    assert "8 not run" in out
    line = next(line for line in out.splitlines() if line.split()[:2] == ["blast", "70"])
    assert re.split(r"\s{2,}", line)[-2:] == ["not measured", "for memory"]


def test_a_recorded_machine_is_summarised(tmp_path, capsys):
    export_grid(fake.write_grid(tmp_path / "default"), tmp_path / "recorded")
    out = summary(capsys, fake.HARDWARE, "--recorded", tmp_path / "recorded")
    assert f"Summary of {fake.HARDWARE}: 48 points done" in out
    assert "1.53x fewer" in out


def test_a_small_dense_model_and_a_variant_are_told_apart_and_get_no_times_of_blocks(tmp_path, capsys):
    grid = GridFolder(fake.write_grid(tmp_path / "default"))
    plan = json.loads(grid.plan.read_text())
    record, _ = fake.make_training_record(fake.make_point("vit-nano", "digits", "blast", 0.95, 0))
    for name, change in (
        (
            "vit-nano.digits.small_dense.s95.seed0",
            {"method": "small_dense", "block": None, "sparsify": None, "ffn": 32},
        ),
        ("vit-nano.digits.blast.s95.b16.seed0.wd0", {}),
    ):
        point = Point.from_dict(record["point"] | {"id": name} | change)
        result = {key: value for key, value in record["result"].items() if key not in ("artifacts", "sparsity")}
        write_record(grid, make_record(point, status="ok", result=result, run=fake.run_part()))
        plan.append(point.to_dict())
    grid.plan.write_text(json.dumps(plan))
    lines = summary(capsys, grid.root, "--recorded", tmp_path / "recorded", "--all").splitlines()
    small = next(line for line in lines if line.split()[:1] == ["small_dense"])
    assert re.split(r"\s{2,}", small)[-2] == "not measured"
    assert any(line.split()[5:7] == ["16x16", "wd0"] for line in lines)
    assert any(line.split()[:6] == ["vit-nano", "digits", "small_dense", "95", "%", "–"] for line in lines)


def test_a_grid_that_is_not_there_gets_the_nearest_name(tmp_path, capsys):
    fake.write_grid(tmp_path / "default")
    assert main(["summary", "defualt", "--results", str(tmp_path)]) == 2
    assert "unknown grid or machine 'defualt'; did you mean 'default'?" in capsys.readouterr().err
