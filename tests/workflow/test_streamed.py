"""The workflow streams its points into MLflow while they train, and ends with the run of the grid."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow_grid import all_runs, grid_runs
from workflow_place import Place, grid

from blast.experiment.tracking.store import tracking_uri


@pytest.mark.slow
def test_a_run_of_the_workflow_streams_its_points_and_completes_the_run_of_the_grid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    place = Place(tmp_path / "place")
    one = {"architectures": ["vit-nano"], "datasets": ["digits"], "blocks": [16], "sparsity": [0]}
    # Much longer than the process that streams takes to start.
    long = {"steps": 2000, "batch": 16, "learning_rate": 1e-3, "evaluate_every": 500}
    place.write(grid("streamed", grid=[one], training={"default": long}))
    done = place.run("all")
    assert done.returncode == 0, done.stdout + done.stderr
    uri = tracking_uri(place.folder / "results")
    (run,) = all_runs(uri, "streamed")
    (parent,) = grid_runs(uri, "streamed")
    assert (run.info.status, parent.info.status) == ("FINISHED", "FINISHED")
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    # Streamed, and not sent by the import alone.
    assert run.data.metrics["progress/percent"] == 100
    assert parent.data.tags["verdict"] == (place.folder / "results/streamed/verdict.txt").read_text().splitlines()[0]
    assert (place.folder / "results/streamed/logs/stream.log").read_text() == ""
