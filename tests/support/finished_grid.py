"""A grid whose every file is there as after a run, with invented numbers: what a run would do next is seen at once."""

from __future__ import annotations

from pathlib import Path

import yaml

from blast.experiment.plan.config import Config, parse
from blast.experiment.plan.grid import Plan, expand
from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.records.fingerprint import fingerprint, language_fingerprint, training_fingerprint
from blast.experiment.records.language import language_digest
from blast.experiment.records.record import make_record, write_record
from blast.experiment.todo.files import requests_key
from blast.experiment.todo.views import find_views, note_drawn, view_keys
from blast.experiment.tracking.imports import Imports
from blast.files import write_atomically, write_json

STORE = "http://127.0.0.1:9"
TIMED = {"suite": "mlp", "shapes": ["gpt2"], "sparsity": [0.9], "blocks": [64], "tokens": [16], "repeats": 5}


def values(name: str, figures: str = "drawn", **changes) -> dict:
    """The config of a grid of two models, an lm-eval task and a benchmark."""
    return {
        "name": name,
        "figures": figures,
        "training": {"default": {"steps": 20, "batch": 16, "learning_rate": 1e-3, "evaluate_every": 10}},
        "points_per_job": {"default": 4},
        "evaluation": {"items": 20},
        "grid": [
            {"architectures": ["vit-nano"], "datasets": ["digits"], "sparsity": [0, 0.9], "blocks": [16]},
            {"architectures": ["gpt2-nano"], "datasets": ["pystdlib"], "sparsity": [0, 0.9], "blocks": [16]},
        ],
        "benchmarks": [TIMED],
        **changes,
    }


def planned(config: dict) -> tuple[Config, Plan]:
    parsed = parse(config, Path("grid.yaml"))
    return parsed, expand(parsed)


def write_point(point: Point, folder: GridFolder, value: float = 0.5, **run) -> None:
    """The record of a point, its checkpoint, and its metrics of lm-eval."""
    metrics = [{"metric": "top1", "unit": "fraction", "value": value, "n": 10}]
    artifacts = {"checkpoint": {"path": "checkpoint", "digest": "sha256:0"}} if point.stage == "train" else {}
    run = {
        "wall_s": 1.25, "hardware": "cpu", "fingerprint": fingerprint(point), **run,
        **({"training_fingerprint": training_fingerprint(point)} if point.stage == "train" else {}),
    }  # fmt: skip
    record = make_record(point, status="ok", result={"metrics": metrics, "artifacts": artifacts}, run=run)
    write_record(folder, record)
    if point.stage == "train":
        write_atomically(folder.work(point.id) / "checkpoint" / "blast.safetensors", b"weights")
    if tasks := point.evaluation.get("tasks"):
        language = {
            "format": 1, "id": point.id, "record_digest": record["record_digest"], "status": "ok", "cause": None,
            "fingerprint": language_fingerprint(tasks), "metrics": [{**metrics[0], "task": task} for task in tasks],
        }  # fmt: skip
        write_json(folder.language(point.id), language | {"digest": language_digest(language)})
        folder.item_scores(point.id).touch()
    Imports(folder, STORE).add([record])


def write_finished(config: dict, folder: GridFolder, views: Path, drawn: Path, recorded: Path) -> Plan:
    """Writes every file of a finished grid.

    Args:
        config: As `values` gives it.
        folder: Folder of the grid.
        views: `paper_figures/views`.
        drawn: The folder of pictures, as the workflow is given it.
        recorded: `results/recorded`.
    """
    parsed, plan = planned(config)
    for point in plan.points.values():
        write_point(point, folder)
    for dataset in plan.datasets:
        facts = {"status": "ok", "cause": None, "facts": {}, "settings": plan.data_settings(dataset)}
        write_json(folder.fetched(dataset), facts)
        write_json(folder.data(dataset), facts)
        if plan.tasks(dataset):
            write_atomically(folder.requests(dataset), b"requests")
            write_atomically(folder.requests_key(dataset), requests_key(dataset, plan))
    write_json(folder.plan, [point.to_dict() for point in plan.points.values()])
    write_atomically(folder.config, yaml.safe_dump(parsed.to_dict()))
    write_json(folder.root / "keys.json", view_keys(found := find_views(views, drawn), plan.points, folder, recorded))
    for view in found:
        for file in view.files:
            write_atomically(file, f"{file.name}\n")
        note_drawn(views, view.name, drawn, folder.root / "keys.json", folder)
    write_atomically(folder.verdict, f"all {len(plan.points)} points are good\n")
    return plan
