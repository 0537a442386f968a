"""The workflow as a user runs it, on the smallest real grid: failures, retries, and nothing is done twice."""

from __future__ import annotations

import json

import pytest
from workflow_place import VIEWS, grid


@pytest.mark.slow
def test_a_failing_point_stops_no_other_and_the_next_run_redoes_only_it(place):
    place.write(grid("poison"))
    first = place.run("all")
    said = first.stdout + first.stderr
    assert first.returncode == 1, said
    assert "FAILED point vit-nano.digits.dense.seed0.hot: the loss is" in said
    results = place.folder / "results" / "poison"
    for name in ("vit-nano.digits.dense.seed0", "vit-nano.digits.blast.s90.b16.seed0"):
        assert json.loads((results / "records" / f"{name}.json").read_text())["status"] == "ok"
    for view in VIEWS:
        assert list((results / "figures").glob(f"{view}.*")), f"{view} was not built"
    assert (results / "failed" / "vit-nano.digits.dense.seed0.hot.json").is_file()
    good = {file: file.read_bytes() for file in (results / "records").iterdir()}

    again = place.run("points")
    said = again.stdout + again.stderr
    assert again.returncode == 0, said
    assert "vit-nano.digits.dense.seed0.hot:" in said
    assert "1 of 3 points to run in 1 jobs" in said
    assert "vit-nano.digits.dense.seed0:" not in said
    assert "vit-nano.digits.blast.s90.b16.seed0:" not in said
    assert {file: file.read_bytes() for file in good} == good

    # One figure alone is redrawn from the records there are, and trains nothing, though the grid is not complete.
    (results / "records" / "vit-nano.digits.blast.s90.b16.seed0.json").unlink()
    figure = results / "figures" / "accuracy_vs_sparsity.pdf"
    figure.unlink()
    alone = place.run("results/poison/figures/accuracy_vs_sparsity.pdf")
    assert alone.returncode == 0, alone.stdout + alone.stderr
    assert figure.is_file()
    assert not (results / "records" / "vit-nano.digits.blast.s90.b16.seed0.json").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"trainig": {}}, "grid.yaml: unknown key 'trainig'; did you mean 'training'?"),
        ({"grid": [{"architectures": ["vit-nano"], "datasets": ["digits"], "sparsity": [1.5]}]}, "grid.0.sparsity"),
    ],
)
def test_a_fault_in_the_config_prints_one_sentence_before_any_job_starts(place, changes, sentence):
    place.write(grid("faulty") | changes)
    answer = place.run("all")
    said = answer.stdout + answer.stderr
    assert answer.returncode != 0
    assert sentence in said
    assert "Traceback" not in said
    assert not (place.folder / "results").exists()


def test_an_unknown_target_prints_one_sentence_with_the_nearest(place):
    place.write(grid("target"))
    answer = place.run("results/target/figures/claims.pdf")
    assert answer.returncode == 1
    assert "blast: unknown target 'results/target/figures/claims.pdf'; did you mean" in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.slow
def test_an_unreachable_server_or_dataset_prints_one_sentence_and_the_records_stay(place, tmp_path):
    values = grid("offline")
    values["grid"] = [
        {"architectures": ["vit-nano"], "datasets": ["digits"], "sparsity": [0]},
        {"architectures": ["vit-nano"], "datasets": ["imagenet"], "sparsity": [0]},
    ]
    place.write(values)
    answer = place.run("all", MLFLOW_TRACKING_URI="http://127.0.0.1:9", BLAST_CACHE=str(tmp_path / "empty"))
    said = answer.stdout + answer.stderr
    assert answer.returncode == 1, said
    assert "FAILED dataset imagenet:" in said
    assert "FAILED point vit-nano.imagenet.dense.seed0:" in said
    assert "FAILED MLflow: not imported:" in said
    results = place.folder / "results" / "offline"
    assert json.loads((results / "records" / "vit-nano.digits.dense.seed0.json").read_text())["status"] == "ok"

    # The next run has the point already and only shows it.
    later = place.run("all", BLAST_CACHE=str(tmp_path / "empty"))
    assert later.returncode == 1, later.stdout + later.stderr
    assert "MLflow: 1 runs added" in later.stdout + later.stderr
    assert "\nvit-nano.digits.dense.seed0:" not in later.stdout + later.stderr
