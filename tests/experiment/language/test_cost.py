"""What an evaluation costs is printed before it runs: tokens by task, and minutes at speeds that were measured."""

from __future__ import annotations

import json

import pytest

from blast.evaluation.requests import Request, RequestFile
from blast.experiment.cli import main
from blast.experiment.plan.config import read_config
from blast.experiment.plan.grid import expand
from blast.experiment.plan.paths import GridFolder
from blast.experiment.records.record import make_record, write_record
from blast.experiment.records.rows import record_rows

CONFIG = """
name: priced
training: {default: {steps: 4, batch: 2, length: 8, learning_rate: 1.0e-3}}
evaluation: {tasks: {pystdlib: [piqa, text_heldout]}}
grid:
  - {architectures: [gpt2-nano, llama-nano], datasets: [pystdlib], sparsity: [0, 0.5], blocks: [16]}
"""
PIQA, TEXT = 4 + 3, 8 + 8  # a context of 5 and 3 to score; 12 of a text in windows of 8, the last as long as the first


@pytest.fixture
def grid(tmp_path) -> GridFolder:
    folder = GridFolder(tmp_path / "grid")
    (tmp_path / "priced.yaml").write_text(CONFIG)
    requests = [Request(str(n), "piqa", "loglikelihood", [1] * 5, [2] * 3) for n in range(2000)]
    requests.append(Request("text", "text_heldout", "loglikelihood_rolling", [0], [3] * 12))
    RequestFile(["piqa", "text_heldout"], requests).write(folder.requests("pystdlib"))
    return folder


def check(tmp_path) -> int:
    words = ["--cost", "--grid-dir", str(tmp_path / "grid"), "--recorded", str(tmp_path / "none")]
    return main(["check", str(tmp_path / "priced.yaml"), *words])


def run_of(point, **scoring):
    return make_record(
        point,
        status="ok",
        result={"metrics": []},
        run={"hardware": "nvidia-x", "started": "2026-01-01T00:00:00+00:00", **scoring},
    )


def test_tokens_are_printed_and_what_was_not_measured_is_said(grid, tmp_path, capsys):
    assert check(tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    total = (2000 * PIQA + TEXT) / 1e6
    assert lines[0] == f"evaluation on pystdlib, window 8: {total:.2f} M tokens a model"
    assert lines[1].split() == ["piqa", "2000", "requests", "0.01", "M", "tokens"]
    assert lines[3] == (
        f"  gpt2-nano: 2 x {total:.2f} M tokens: not measured here; run one dense model first, its record has the speed"
    )


def test_minutes_come_from_the_records_of_dense_models(grid, tmp_path, capsys):
    points = expand(read_config(tmp_path / "priced.yaml")).points
    dense, pruned = points["gpt2-nano.pystdlib.dense.seed0"], points["gpt2-nano.pystdlib.blast.s50.b16.seed0"]
    write_record(grid, run_of(dense, scoring={"tokens": 14_000, "seconds": 7.0}))
    write_record(grid, run_of(pruned, scoring={"tokens": 14_000, "seconds": 1.0}))
    assert check(tmp_path) == 0
    said = capsys.readouterr().out
    minutes = (2000 * PIQA + TEXT) / 2000 / 60
    assert f"{2 * minutes:.1f} minutes on nvidia-x ({minutes:.2f} a model, 2,000 tokens a second in 1 run)" in said
    assert "llama-nano: 2 x 0.01 M tokens: not measured here" in said


def test_a_dataset_without_requests_is_named(grid, tmp_path, capsys):
    grid.requests("pystdlib").unlink()
    assert check(tmp_path) == 0
    assert "evaluation on pystdlib: not known yet; build its requests first" in capsys.readouterr().out


def test_the_speed_of_scoring_is_a_row_unless_the_point_ran_beside_others(grid, tmp_path):
    point = expand(read_config(tmp_path / "priced.yaml")).points["gpt2-nano.pystdlib.dense.seed0"]
    took = {"scoring": {"tokens": 100, "seconds": 4.0}}
    (row,) = record_rows(json.loads(json.dumps(run_of(point, **took))))
    assert (row["metric"], row["value"], row["unit"], row["n"]) == ("scoring_rate", 25.0, "tokens/s", 100)
    assert record_rows(run_of(point, **took, side_by_side=2)) == []
    assert record_rows(run_of(point)) == []
