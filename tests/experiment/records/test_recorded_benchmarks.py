"""Break-even tables come from a grid and from the recorded evidence together, so that half a grid harms none."""

from __future__ import annotations

import json
from pathlib import Path

import fake_kernels as fake
import pytest

from blast.experiment.cli import main
from blast.experiment.gpu_tables.break_even import inference_rows, training_rows
from blast.experiment.records.export import export
from blast.experiment.records.recorded_benchmarks import recorded_benchmarks
from blast.files import write_json

ROOT = Path(__file__).parents[3]
GPU = "nvidia-h100-80gb-hbm3"
POINTS = [point for point in fake.points() if point.block == (128, 128) and "peers" not in point.id]


def written(tmp_path, records, recorded):
    for record in records:
        write_json(tmp_path / "grid" / "records" / f"{record['point']['id']}.json", record)
    where = ["--grid-dir", str(tmp_path / "grid"), "--recorded", str(recorded), "--tuned", str(tmp_path / "tuned")]
    assert main(["break-even", *where]) == 0
    (file,) = (tmp_path / "tuned").glob("*.json")
    return json.loads(file.read_text())


def test_recorded_rows_give_the_table_that_their_records_give(tmp_path):
    records = [fake.make_record_of(point) for point in POINTS]
    export(records, tmp_path)
    found = list(recorded_benchmarks(tmp_path, "kernels"))
    assert [record["point"]["id"] for record in found] == sorted(point.id for point in POINTS)
    assert inference_rows(found) == inference_rows(records) != []
    assert list(recorded_benchmarks(tmp_path, "training_mlp")) == []


def test_a_part_of_a_grid_is_filled_up_with_what_was_recorded_of_its_gpu(tmp_path):
    records = [fake.make_record_of(point) for point in POINTS]
    export([*records, fake.make_record_of(POINTS[0], hardware="other-gpu")], tmp_path / "recorded")
    table = written(tmp_path, records[-1:], tmp_path / "recorded")
    assert table["gpu"] == fake.GPU
    assert table["break_even"] == inference_rows(records) != inference_rows(records[-1:])


def test_what_the_grid_has_takes_the_place_of_what_was_recorded(tmp_path):
    records = [fake.make_record_of(point) for point in POINTS]
    export(records, tmp_path / "recorded")
    slow = fake.make_record_of(POINTS[-1])
    for entry in slow["result"]["metrics"]:
        if entry["provider"] == "ours" and entry["metric"] == "latency":
            entry["value"] *= 1000
    again = fake.make_record(POINTS[-1], status="ok", result=slow["result"], run=slow["run"])
    table = written(tmp_path, [again], tmp_path / "recorded")
    assert table["break_even"] == inference_rows([*records[:-1], again]) != inference_rows(records)


def test_a_grid_without_benchmarks_of_a_gpu_takes_none_of_another_machine(tmp_path, capsys):
    export([fake.make_record_of(POINTS[0])], tmp_path / "recorded")
    where = ["--grid-dir", str(tmp_path / "grid"), "--recorded", str(tmp_path / "recorded"), "--tuned", str(tmp_path)]
    assert main(["break-even", *where]) == 2
    assert "needs good records of the suite 'kernels' from one GPU, but they are missing" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize(
    ("suite", "part", "rows_of"),
    [("kernels", "break_even", inference_rows), ("training_mlp", "train_break_even", training_rows)],
)
def test_the_committed_table_is_what_the_evidence_says(suite, part, rows_of):
    table = json.loads((ROOT / "kernels" / "tuned" / f"{GPU}.json").read_text())
    records = [r for r in recorded_benchmarks(ROOT / "results" / "recorded", suite) if r["run"]["hardware"] == GPU]
    assert table[part] == rows_of(records) != []
