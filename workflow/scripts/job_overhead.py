"""Measures what a job costs beyond its bare work: `python workflow/scripts/job_overhead.py [--out job_overhead.csv]`.

Each command runs with one point and with three, after it ran once: the code is analysed and the database is made once
for all jobs. What the second and third point cost is bare work; what the first one costs beyond that is overhead: the
start of Python, imports of torch and transformers, the record. The processor time of a command and of all its children
is counted, so other work on the machine adds little. The last rows are commands that do no work: `check`, `plan`,
`status`, and a run of a grid that is finished.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml

from blast.experiment.plan.config import parse
from blast.experiment.plan.grid import expand
from blast.experiment.plan.point import Point
from blast.files import write_json

ROOT = Path(__file__).resolve().parents[2]
BLAST = [sys.executable, "-P", "-m", "blast"]
COLUMNS = ("command", "overhead_core_s", "a_point_core_s")
# Imports of a job are those of its kind of model.
MODELS = {"image": ("vit-nano", "digits"), "text": ("gpt2-nano", "pystdlib")}


def config(kind: str) -> dict:
    """Three dense points of a small model."""
    architecture, dataset = MODELS[kind]
    training = {"steps": 20, "batch": 8, "learning_rate": 1e-3, "evaluate_every": 20, "evaluate_limit": 8}
    length = {"length": 64} if kind == "text" else {}
    block = {"architectures": [architecture], "datasets": [dataset], "sparsity": [0.0], "seeds": [0, 1, 2]}
    return {
        "name": f"overhead-{kind}",
        "figures": "drawn",
        "training": {"default": training | length},
        "points_per_job": {"default": 3},
        "evaluation": {"limit": 16, "items": 20},
        "grid": [block],
    }


def core_seconds(command: Sequence[str], folder: Path) -> float:
    """Processor time of a command and all its children."""
    environment = {"MLFLOW_DISABLE_TELEMETRY": "true", "CUDA_VISIBLE_DEVICES": "", **os.environ}
    # A machine that writes no bytecode would compile the library in every process.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with (folder / "log.txt").open("w+") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, env=environment)
        _, status, used = os.wait4(process.pid, 0)
        if status:
            log.seek(0)
            sys.exit(f"{' '.join(command)}:\n{log.read()}")
    return used.ru_utime + used.ru_stime


def parts(one: float, three: float) -> dict[str, float]:
    """Overhead of a command and cost of a point, from its times with one point and with three."""
    point = (three - one) / 2
    return {"overhead_core_s": round(one - point, 2), "a_point_core_s": round(point, 2)}


def of_points(kind: str, folder: Path) -> list[dict]:
    """The commands that run points, make their metrics, and import them."""
    points = list(expand(parse(config(kind), Path("overhead.yaml"))).points.values())
    for point in points:
        write_json(folder / f"{point.id}.json", point.to_dict())
    _prepare(points[0], folder)
    rows = []
    for verb in ("job", *(["language"] if points[0].evaluation.get("tasks") else []), "mlflow"):
        # What is found once for all jobs: digests of the code, the database.
        core_seconds(_command(verb, points[:1], "before"), folder)
        one, three = (core_seconds(_command(verb, points[:count], f"grid{count}"), folder) for count in (1, 3))
        rows.append({"command": f"{verb}, {kind}", **parts(one, three)})
    return rows


def _command(verb: str, points: list[Point], grid: str) -> list[str]:
    """The command that does a verb for some points of a grid."""
    ids = [point.id for point in points]
    if verb == "job":
        return [*BLAST, verb, *(f"{name}.json" for name in ids), "--out", grid]
    return [*BLAST, verb, *ids, "--grid-dir", grid]


def _prepare(point: Point, folder: Path) -> None:
    """Data and requests, which the workflow makes once a grid."""
    for grid in ("before", "grid1", "grid3"):
        facts = folder / grid / "data" / f"{point.dataset}.json"
        core_seconds([*BLAST, "prepare", str(point.dataset), "--out", str(facts)], folder)
        if tasks := point.evaluation.get("tasks"):
            core_seconds(
                [*BLAST, "requests", str(point.dataset), "--tasks", *tasks, "--items", "20", "--grid-dir", grid], folder
            )


def without_work(folder: Path) -> list[dict]:
    """Commands that find nothing to do."""
    (folder / "overhead.yaml").write_text(yaml.safe_dump(config("image")))
    grid = "overhead.yaml"
    core_seconds([*BLAST, "run", grid, "points", "--cores", "1"], folder)
    commands = [["check", grid], ["plan", grid], ["status", grid], ["run", grid, "points"]]
    return [
        {"command": f"{words[0]}, nothing left", "overhead_core_s": round(core_seconds([*BLAST, *words], folder), 2)}
        for words in commands
    ]


def main(arguments: list[str] | None = None) -> int:
    """Prints a row for each command, and writes all of them; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=MODELS, default=list(MODELS), help="kinds of models")
    parser.add_argument("--out", type=Path, help="CSV file for the rows")
    given = parser.parse_args(arguments)
    rows: list[dict] = []
    for measure in (*(lambda folder, kind=kind: of_points(kind, folder) for kind in given.kinds), without_work):
        with tempfile.TemporaryDirectory() as folder:
            for row in measure(Path(folder)):
                rows.append(row)
                print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    if given.out:
        with given.out.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
