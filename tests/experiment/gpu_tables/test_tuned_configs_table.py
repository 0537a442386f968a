"""The table of tuned kernel configs is made from records; every time in them is invented."""

from __future__ import annotations

import argparse
import json

import pytest
import torch
from blast_kernels.mlp_inference.heuristics import KernelConfig
from blast_kernels.mlp_inference.tuned_configs import read_tuned_configs, tuned_config
from blast_kernels.tables.break_even import read_table

from blast.errors import BlastError
from blast.experiment import cli
from blast.experiment.gpu_tables import commands
from blast.experiment.gpu_tables.table import update_table
from blast.experiment.gpu_tables.tuned_configs import tuned_config_rows, write_tuned_configs

GPU = "imaginary-gpu"
HEURISTIC, OTHER, THIRD = (
    KernelConfig("tiles", 64, 64, 64, 4, 4),
    KernelConfig("tiles", 128, 64, 64, 3, 4),
    KernelConfig("stream", 64, 64, 128, 4, 4),
)


def record(times: dict[KernelConfig, float | None], triton="3.6.0", hardware=GPU, status="ok", **facts):
    fixed = {"part": "down", "gate": "none", "block": [128, 128], "records": 32, "row_blocks": 5.5} | facts
    entry = {"metric": "latency", "tokens": 128, "dtype": "bfloat16", "provider": "ours"}
    metrics = [
        entry | {"value": time, "setting": fixed | {"plan": list(plan), "picked": False, "rules": plan == HEURISTIC}}
        for plan, time in times.items()
    ]
    metrics.append(entry | {"metric": "pick_cost", "value": 0.1, "setting": fixed | {"by": "rules"}})
    point = {"block": [128, 128], "benchmark": {"suite": "kernel_plans"}}
    run = {"hardware": hardware, "gpu": "Imaginary", "started": "2026-11-23T10:00:00+00:00"}
    run |= {"versions": {"triton": triton}, "commit": "abc"}
    return {"status": status, "point": point, "result": {"metrics": metrics}, "run": run}


def configs(*records) -> list[KernelConfig]:
    return [KernelConfig(*row["plan"]) for row in tuned_config_rows(records)]


def test_the_fastest_config_is_taken_and_a_failed_one_never():
    assert configs(record({HEURISTIC: 1.0, OTHER: 0.8, THIRD: None})) == [OTHER]


def test_the_heuristic_config_is_kept_unless_another_is_clearly_faster():
    assert configs(record({HEURISTIC: 1.0, OTHER: 0.99})) == [HEURISTIC]
    assert configs(record({HEURISTIC: 1.0, OTHER: 0.97})) == [OTHER]
    assert configs(record({HEURISTIC: None, OTHER: 0.99})) == [OTHER]


def test_a_product_that_two_shapes_share_gets_the_config_with_the_smallest_mean_time():
    both = record({HEURISTIC: 1.0, OTHER: 0.5, THIRD: 0.7}), record({HEURISTIC: 1.0, OTHER: 0.9, THIRD: 0.6})
    assert configs(*both) == [THIRD]
    # A config that failed for one of the shapes is no candidate.
    assert configs(both[0], record({HEURISTIC: 1.0, OTHER: None, THIRD: 0.95})) == [THIRD]


def test_products_that_differ_have_rows_of_their_own():
    made = [record({HEURISTIC: 1.0}), record({HEURISTIC: 1.0}, records=64), record({HEURISTIC: 1.0}, gate="tied")]
    assert len(tuned_config_rows(made)) == 3


def test_the_table_that_is_written_is_read_by_the_kernels(tmp_path):
    file = write_tuned_configs([record({HEURISTIC: 1.0, OTHER: 0.8})], tmp_path)
    assert file.name == f"{GPU}.json"
    found = tuned_config(128, 32, 5.5, 128, 128, "none", torch.bfloat16, GPU, "3.6", tmp_path)
    assert found == OTHER
    assert json.loads(file.read_text())["plans"]["3.6"]["run"]["commit"] == "abc"
    # One row per line, so that a diff shows which rows changed.
    assert sum('"plan"' in line for line in file.read_text().splitlines()) == 1


def test_tuning_again_keeps_other_versions_and_the_break_even_points(tmp_path):
    point = {
        "block": [64, 64],
        "gate": "none",
        "dtype": "bfloat16",
        "in": 768,
        "hidden": 3072,
        "tokens": 16,
        "sparsity": 0.5,
    }
    update_table(tmp_path, GPU, {"break_even": [point]})
    write_tuned_configs([record({HEURISTIC: 1.0}), record({HEURISTIC: 1.0, OTHER: 0.8}, triton="3.9.1")], tmp_path)
    write_tuned_configs([record({HEURISTIC: 1.0, THIRD: 0.7})], tmp_path)
    versions = {name: KernelConfig(*rows[0]["plan"]) for name, rows in read_tuned_configs(GPU, tmp_path).items()}
    assert versions == {"3.6": THIRD, "3.9": OTHER}
    assert read_table(GPU, tmp_path) == (point,)


def test_tuning_some_products_keeps_the_configs_of_others(tmp_path):
    write_tuned_configs(
        [record({HEURISTIC: 1.0, OTHER: 0.8}), record({HEURISTIC: 1.0, OTHER: 0.8}, records=64)], tmp_path
    )
    file = write_tuned_configs([record({HEURISTIC: 1.0, THIRD: 0.7}, records=64)], tmp_path)
    found = json.loads(file.read_text())["plans"]["3.6"]
    assert [(row["records"], KernelConfig(*row["plan"])) for row in found["rows"]] == [(32, OTHER), (64, THIRD)]


def test_a_table_of_several_runs_names_all_of_them(tmp_path):
    first, other = record({HEURISTIC: 1.0}), record({HEURISTIC: 1.0}, records=64)
    other["run"] |= {"commit": "def"}

    def runs(*records):
        found = json.loads(write_tuned_configs(records, tmp_path).read_text())["plans"]["3.6"]
        return found["run"]["commit"], [run["commit"] for run in found.get("earlier", [])]

    assert runs(first) == ("abc", [])
    assert runs(other) == ("def", ["abc"])
    assert runs(other) == ("def", ["abc"])
    # All products were tuned again, so no earlier run is named.
    assert runs(first, other) == ("abc", [])


def test_a_damaged_table_is_not_overwritten(tmp_path):
    file = tmp_path / f"{GPU}.json"
    file.write_text("[1, 2")
    with pytest.raises(BlastError, match=rf"{GPU}.json: damaged table of a GPU"):
        write_tuned_configs([record({HEURISTIC: 1.0})], tmp_path)
    assert file.read_text() == "[1, 2"


def test_records_of_two_gpus_or_of_none_are_rejected(tmp_path):
    with pytest.raises(BlastError, match="'kernel_plans' from one GPU, but they come from imaginary-gpu, other"):
        write_tuned_configs([record({HEURISTIC: 1.0}), record({HEURISTIC: 1.0}, hardware="other-gpu")], tmp_path)
    with pytest.raises(BlastError, match="they are missing"):
        write_tuned_configs([record({HEURISTIC: 1.0}, status="failed")], tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_tuning_without_a_gpu_is_one_sentence(capsys):
    assert cli.main(["tune"]) == 2
    said = capsys.readouterr().err
    assert "this machine has no CUDA GPU" in said
    assert said.count("\n") == 1


def test_tuning_runs_the_points_of_the_suite_and_writes_the_table(tmp_path, monkeypatch, capsys):
    from blast.benchmark import kernel_plans
    from blast.experiment.plan.paths import GridFolder
    from blast.experiment.records import rows

    asked: list[argparse.Namespace] = []

    def bench(options):
        asked.append(options)
        return 0, GridFolder(tmp_path / "grid")

    monkeypatch.setattr(kernel_plans, "this_gpu", lambda: None)
    monkeypatch.setattr(commands, "_bench", bench)
    monkeypatch.setattr(rows, "read_grid", lambda folder: [(record({HEURISTIC: 1.0, OTHER: 0.8}), None)])
    assert cli.main(["tune", "--only", "*s95*", "--tuned", str(tmp_path)]) == 0
    assert (asked[0].suite, asked[0].only, asked[0].plan) == ("kernel_plans", "*s95*", None)
    assert f"written: {tmp_path / GPU}.json" in capsys.readouterr().out
    assert list(read_tuned_configs(GPU, tmp_path)) == ["3.6"]
