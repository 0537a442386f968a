"""The run of a grid holds its runs, its figures and tables, its claims and its verdict; benchmarks are apart."""

from __future__ import annotations

from typing import Any

import pytest
from mlflow_grid import GRID, artifacts, grid_runs, metric, runs_of, write_point

from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.records.record import make_record
from blast.experiment.tracking.importer import import_grid
from blast.experiment.tracking.run import make_run
from blast.experiment.tracking.store import open_client, tracking_uri
from blast.files import file_digest, write_atomically, write_json


def drawn(folder: GridFolder) -> dict[str, bytes]:
    """Pictures and tables as the workflow draws and notes them; one was drawn over by another grid."""
    place = folder.root.parents[1] / "pictures"
    claims = b"claim,paper,ours,verdict\nspeed | of MLPs,16,12,\nquality,,,ok\n"
    files = {
        "curves.png": b"png",
        "curves.pdf": b"pdf",
        "claims.csv": claims,
        "claims.md": b"| claim |",
        "old.png": b"x",
    }
    for name, content in files.items():
        write_atomically(place / name, content)
    for view, kinds in {"curves": ("png", "pdf"), "claims": ("csv", "md"), "old": ("png",)}.items():
        notes = {f"{view}.{kind}": file_digest(place / f"{view}.{kind}") for kind in kinds}
        write_json(folder.root / "views" / f"{view}.json", {"key": "sha256:0", "files": notes})
    write_atomically(place / "old.png", b"of another grid")
    write_atomically(folder.config, "name: tiny\nfigures: pictures\n")
    return files


def parent_of(folder: GridFolder, experiment: str = GRID) -> Any:
    (parent,) = grid_runs(tracking_uri(folder.root.parent), experiment)
    return parent


def test_the_run_of_a_grid_has_its_figures_tables_claims_and_verdict(mlflow_folder: GridFolder) -> None:
    write_point(mlflow_folder, "p1")
    files = drawn(mlflow_folder)
    write_atomically(mlflow_folder.verdict, "1 point, none failed\nBAD point p1: no better than guessing\n")
    import_grid(mlflow_folder.root)
    parent = parent_of(mlflow_folder)
    assert (parent.info.run_name, parent.info.status) == ("grid tiny", "FINISHED")
    there = {str(file.relative_to(artifacts(parent))) for file in artifacts(parent).rglob("*") if file.is_file()}
    assert there == {"figures/curves.png", "tables/claims.csv", "tables/claims.md", "verdict.txt"}
    assert (artifacts(parent) / "figures" / "curves.png").read_bytes() == files["curves.png"]
    note = parent.data.tags["mlflow.note.content"]
    assert "1 point, none failed" in note
    assert "BAD point p1" in note
    assert "| speed / of MLPs | 16 | 12 |  |" in note
    assert f"[curves](get-artifact?path=figures/curves.png&run_uuid={parent.info.run_id})" in note
    assert parent.data.metrics == {"points_done": 1.0, "points_failed": 0.0}
    assert parent.data.tags["verdict"] == "1 point, none failed"


def test_a_grid_that_is_as_before_is_not_written_again(
    mlflow_folder: GridFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_point(mlflow_folder, "p1")
    drawn(mlflow_folder)
    import_grid(mlflow_folder.root)
    with monkeypatch.context() as patch:
        patch.setattr("mlflow.MlflowClient.log_artifacts", lambda *_: pytest.fail("written again"))
        import_grid(mlflow_folder.root)
    write_atomically(mlflow_folder.verdict, "1 point, none failed\n")
    import_grid(mlflow_folder.root)
    assert parent_of(mlflow_folder).data.tags["verdict"] == "1 point, none failed"


def test_the_description_of_a_run_leads_to_its_record_its_log_and_the_figures(mlflow_folder: GridFolder) -> None:
    write_point(mlflow_folder, "p1")
    import_grid(mlflow_folder.root)
    (run,) = runs_of(mlflow_folder)
    parent = parent_of(mlflow_folder)
    note = run.data.tags["mlflow.note.content"]
    assert note.startswith("gpt2-nano on pystdlib, blast at 75 %, seed 0")
    for link in (
        f"[record](get-artifact?path=record.json&run_uuid={run.info.run_id})",
        f"[log](get-artifact?path=log.txt&run_uuid={run.info.run_id})",
        f"[masks](get-artifact?path=masks/over_time.png&run_uuid={run.info.run_id})",
        f"(#/experiments/{run.info.experiment_id}/runs/{parent.info.run_id}/artifacts?workflowType=machine_learning)",
        "`results/tiny/records/p1.json`",
        "`python -m blast job x.json`",
    ):
        assert link in note
    assert run.data.tags["log"] == "logs/p1.log"


def benchmark(folder: GridFolder, name: str = "b1") -> dict[str, Any]:
    timed = {"unit": "ms", "tokens": 16, "dtype": "float32"}
    entries = [
        metric("latency", 2.0, provider="ours", **timed),
        metric("latency", 5.0, provider="dense_eager", **timed),
    ]
    suite = {"suite": "mlp", "tokens": [16], "dtype": "float32", "repeats": 5}
    point = Point(
        id=name, grid=GRID, stage="benchmark", architecture="gpt2", sparsity=0.9, block=(64, 64), benchmark=suite
    )
    record = make_record(point, status="ok", result={"metrics": entries}, run={"command": "blast job"})
    write_json(folder.record(name), record)
    return record


def test_benchmarks_are_in_an_experiment_of_their_own_with_columns_of_their_own(mlflow_folder: GridFolder) -> None:
    write_point(mlflow_folder, "p1")
    benchmark(mlflow_folder)
    assert import_grid(mlflow_folder.root).added == ["b1", "p1"]
    assert [run.info.run_name for run in runs_of(mlflow_folder)] == ["p1"]
    (run,) = runs_of(mlflow_folder, f"{GRID} benchmarks")
    columns = ("ours_ms", "dense_ms", "speed_up", "at_tokens")
    assert [run.data.metrics[name] for name in columns] == [2.0, 5.0, 2.5, 16.0]
    assert run.data.tags["mlflow.parentRunId"] == parent_of(mlflow_folder, f"{GRID} benchmarks").info.run_id
    assert (artifacts(run) / "rows.csv").is_file()


def test_a_benchmark_that_an_earlier_version_put_among_the_trainings_is_superseded(mlflow_folder: GridFolder) -> None:
    write_point(mlflow_folder, "p1")
    import_grid(mlflow_folder.root)
    (trained,) = runs_of(mlflow_folder)
    client = open_client(tracking_uri(mlflow_folder.root.parent))
    old = make_run(client, trained.info.experiment_id, benchmark(mlflow_folder))
    client.set_tag(old.info.run_id, "superseded", "false")
    import_grid(mlflow_folder.root)
    found = {run.info.run_name: run.data.tags["superseded"] for run in runs_of(mlflow_folder)}
    assert found == {"p1": "false", "b1": "true"}


def test_runs_of_an_earlier_version_are_nested_when_they_are_imported_again(mlflow_folder: GridFolder) -> None:
    write_point(mlflow_folder, "p1")
    import_grid(mlflow_folder.root)
    (run,) = runs_of(mlflow_folder)
    client = open_client(tracking_uri(mlflow_folder.root.parent))
    for tag in ("mlflow.parentRunId", "mlflow.runType"):
        client.delete_tag(run.info.run_id, tag)
    assert import_grid(mlflow_folder.root).unchanged == ["p1"]
    (run,) = runs_of(mlflow_folder)
    assert run.data.tags["mlflow.parentRunId"] == parent_of(mlflow_folder).info.run_id
    # MLflow's table unfolds the parents of runs of this kind.
    assert run.data.tags["mlflow.runType"] == "evaluation"
