"""The table of tuned plans is made of records; every time in them is invented."""

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
from blast.experiment.gpu_tables.plans import plan_rows, write_plans
from blast.experiment.gpu_tables.table import update_table

GPU = "imaginary-gpu"
RULES, OTHER, THIRD = (
    KernelConfig("tiles", 64, 64, 64, 4, 4),
    KernelConfig("tiles", 128, 64, 64, 3, 4),
    KernelConfig("stream", 64, 64, 128, 4, 4),
)


def record(times: dict[KernelConfig, float | None], triton="3.6.0", hardware=GPU, status="ok", **facts):
    fixed = {"part": "down", "gate": "none", "block": [128, 128], "records": 32, "row_blocks": 5.5} | facts
    entry = {"metric": "latency", "tokens": 128, "dtype": "bfloat16", "provider": "ours"}
    metrics = [
        entry | {"value": time, "setting": fixed | {"plan": list(plan), "picked": False, "rules": plan == RULES}}
        for plan, time in times.items()
    ]
    metrics.append(entry | {"metric": "pick_cost", "value": 0.1, "setting": fixed | {"by": "rules"}})
    point = {"block": [128, 128], "benchmark": {"suite": "kernel_plans"}}
    run = {"hardware": hardware, "gpu": "Imaginary", "started": "2026-11-23T10:00:00+00:00"}
    run |= {"versions": {"triton": triton}, "commit": "abc"}
    return {"status": status, "point": point, "result": {"metrics": metrics}, "run": run}


def plans(*records) -> list[KernelConfig]:
    return [KernelConfig(*row["plan"]) for row in plan_rows(records)]


def test_the_fastest_plan_is_taken_and_a_failed_one_never():
    assert plans(record({RULES: 1.0, OTHER: 0.8, THIRD: None})) == [OTHER]


def test_the_rules_keep_their_plan_where_another_is_hardly_faster():
    assert plans(record({RULES: 1.0, OTHER: 0.99})) == [RULES]
    assert plans(record({RULES: 1.0, OTHER: 0.97})) == [OTHER]
    assert plans(record({RULES: None, OTHER: 0.99})) == [OTHER]


def test_a_product_that_two_shapes_share_gets_the_plan_that_is_best_for_both():
    both = record({RULES: 1.0, OTHER: 0.5, THIRD: 0.7}), record({RULES: 1.0, OTHER: 0.9, THIRD: 0.6})
    assert plans(*both) == [THIRD]
    # Not one that failed in one of them.
    assert plans(both[0], record({RULES: 1.0, OTHER: None, THIRD: 0.95})) == [THIRD]


def test_products_that_differ_have_rows_of_their_own():
    made = [record({RULES: 1.0}), record({RULES: 1.0}, records=64), record({RULES: 1.0}, gate="tied")]
    assert len(plan_rows(made)) == 3


def test_the_table_that_is_written_is_read_by_the_kernels(tmp_path):
    file = write_plans([record({RULES: 1.0, OTHER: 0.8})], tmp_path)
    assert file.name == f"{GPU}.json"
    found = tuned_config(128, 32, 5.5, 128, 128, "none", torch.bfloat16, GPU, "3.6", tmp_path)
    assert found == OTHER
    assert json.loads(file.read_text())["plans"]["3.6"]["run"]["commit"] == "abc"
    # A row a line: a change of the table can be read.
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
    write_plans([record({RULES: 1.0}), record({RULES: 1.0, OTHER: 0.8}, triton="3.9.1")], tmp_path)
    write_plans([record({RULES: 1.0, THIRD: 0.7})], tmp_path)
    versions = {name: KernelConfig(*rows[0]["plan"]) for name, rows in read_tuned_configs(GPU, tmp_path).items()}
    assert versions == {"3.6": THIRD, "3.9": OTHER}
    assert read_table(GPU, tmp_path) == (point,)


def test_tuning_some_products_keeps_the_plans_of_others(tmp_path):
    write_plans([record({RULES: 1.0, OTHER: 0.8}), record({RULES: 1.0, OTHER: 0.8}, records=64)], tmp_path)
    file = write_plans([record({RULES: 1.0, THIRD: 0.7}, records=64)], tmp_path)
    found = json.loads(file.read_text())["plans"]["3.6"]
    assert [(row["records"], KernelConfig(*row["plan"])) for row in found["rows"]] == [(32, OTHER), (64, THIRD)]


def test_a_table_of_several_runs_names_all_of_them(tmp_path):
    first, other = record({RULES: 1.0}), record({RULES: 1.0}, records=64)
    other["run"] |= {"commit": "def"}

    def runs(*records):
        found = json.loads(write_plans(records, tmp_path).read_text())["plans"]["3.6"]
        return found["run"]["commit"], [run["commit"] for run in found.get("earlier", [])]

    assert runs(first) == ("abc", [])
    assert runs(other) == ("def", ["abc"])
    assert runs(other) == ("def", ["abc"])
    # All of it swept again: nothing is left of the runs before.
    assert runs(first, other) == ("abc", [])


def test_a_damaged_table_is_not_written_over(tmp_path):
    file = tmp_path / f"{GPU}.json"
    file.write_text("[1, 2")
    with pytest.raises(BlastError, match=rf"{GPU}.json: is no table of a GPU"):
        write_plans([record({RULES: 1.0})], tmp_path)
    assert file.read_text() == "[1, 2"


def test_records_of_two_gpus_or_of_none_make_no_table(tmp_path):
    with pytest.raises(
        BlastError, match="'kernel_plans' of one GPU are needed, but they come from imaginary-gpu, other"
    ):
        write_plans([record({RULES: 1.0}), record({RULES: 1.0}, hardware="other-gpu")], tmp_path)
    with pytest.raises(BlastError, match="they are missing"):
        write_plans([record({RULES: 1.0}, status="failed")], tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_tuning_without_a_gpu_is_refused_in_one_sentence(capsys):
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
    monkeypatch.setattr(rows, "read_grid", lambda folder: [(record({RULES: 1.0, OTHER: 0.8}), None)])
    assert cli.main(["tune", "--only", "*s95*", "--tuned", str(tmp_path)]) == 0
    assert (asked[0].suite, asked[0].only, asked[0].plan) == ("kernel_plans", "*s95*", None)
    assert f"written: {tmp_path / GPU}.json" in capsys.readouterr().out
    assert list(read_tuned_configs(GPU, tmp_path)) == ["3.6"]
