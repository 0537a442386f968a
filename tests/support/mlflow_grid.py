"""A small made-up grid for the tests of the MLflow import: records, logs, masks, and how to read the runs back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.records.record import make_record
from blast.experiment.tracking.experiments import GRID_RUN
from blast.experiment.tracking.store import open_client, tracking_uri
from blast.files import write_json

GRID = "tiny"


def metric(name: str, value: float, **more: Any) -> dict[str, Any]:
    return {
        "metric": name,
        "task": None,
        "unit": "fraction",
        "value": value,
        "low": None,
        "high": None,
        "spread": None,
    } | more


def write_point(
    folder: GridFolder, name: str, *, loss: float = 2.0, failed: bool = False, steps: int = 3, grid: str = GRID
) -> dict[str, Any]:
    """Writes the record, the log and the masks of a small made-up point, and returns the record."""
    point = Point(
        id=name,
        grid=grid,
        stage="train",
        architecture="gpt2-nano",
        dataset="pystdlib",
        method="blast",
        sparsity=0.75,
        block=(16, 32),
        parent="dense",
        sparsify={"keep_score": "magnitude", "targets": ["mlp"]},
        training={"steps": steps},
    )
    result = {
        "metrics": [
            metric("loss", loss, unit="nats/token", low=loss - 0.1, high=loss + 0.1, spread="stderr"),
            metric("weights_bytes", 4096, unit="bytes"),
        ],
        "curves": {
            "train_loss": {
                "unit": "nats/token",
                "step": list(range(steps)),
                "value": [5.0 / (i + 1) for i in range(steps)],
            }
        },
        "sparsity": {"target": 0.75, "achieved": 0.5, "matrices": {}},
        "dataset": {"name": "pystdlib", "digest": "sha256:" + "ab" * 32, "counts": {"train_tokens": 9}},
        "parameters": {"total": 10, "prunable": 8, "live": 2},
        "artifacts": {"masks": {"path": "masks.safetensors", "digest": "sha256:0"}},
    }
    run = {
        "started": "2026-01-02T03:04:05+00:00",
        "finished": "2026-01-02T03:04:45+00:00",
        "commit": "c0ffee",
        "hardware": "cpu-test",
        "command": "python -m blast job x.json",
    }
    log = folder.log(name)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("step 1 of 3\n")
    mask = np.zeros((2, 4), np.uint8)
    mask[0, 0] = 1
    folder.work(name).mkdir(parents=True, exist_ok=True)
    save_file(
        {"step000000/h.0.fc1": np.ones_like(mask), "step000002/h.0.fc1": mask}, folder.work(name) / "masks.safetensors"
    )
    status, cause = ("failed", "the loss is nan at step 1") if failed else ("ok", None)
    record = make_record(
        point, status=status, cause=cause, result={} if failed else result, run=run, log=f"logs/{name}.log"
    )
    write_json(folder.record(name), record)
    return record


def write_language(folder: GridFolder, record: dict[str, Any], accuracy: float = 0.5) -> None:
    ends = {"low": accuracy - 0.02, "high": accuracy + 0.02, "spread": "stderr"}
    entry = metric("acc", accuracy, task="pystdlib_next_line", **ends)
    name = record["point"]["id"]
    language = {"format": 1, "id": name, "record_digest": record["record_digest"], "status": "ok", "cause": None}
    write_json(folder.language(name), language | {"metrics": [entry], "versions": {}})


def all_runs(uri: str, experiment: str = GRID) -> list[Any]:
    """All runs of the points of a grid that are not deleted, oldest import first; the run of the grid is none."""
    return [run for run in _runs(uri, experiment) if GRID_RUN not in run.data.tags]


def grid_runs(uri: str, experiment: str = GRID) -> list[Any]:
    """The runs of the grid itself; there should be one."""
    return [run for run in _runs(uri, experiment) if GRID_RUN in run.data.tags]


def _runs(uri: str, experiment: str) -> list[Any]:
    client = open_client(uri)
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id], order_by=["attributes.created DESC"], max_results=50_000)
    return list(reversed(runs))


def runs_of(folder: GridFolder, experiment: str = GRID) -> list[Any]:
    """All runs of the points of a grid in the database beside its folder."""
    return all_runs(tracking_uri(folder.root.parent), experiment)


def artifacts(run: Any) -> Path:
    return Path(run.info.artifact_uri.removeprefix("file://").replace("%20", " "))
