"""Invented records of training runs with times and a switch to sparse execution. Nothing was measured."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from fake_kernels import GPU
from fake_records import run_part

from blast.experiment.plan.point import Point
from blast.experiment.records.record import make_record
from blast.files import write_json
from blast.sparsity.config import METHODS, SparsifyConfig

GRID, STEPS, EVERY = "study", 1600, 80
# Invented: the step at which a run switches, the seconds of a step before and after, and the loss it ends with.
DENSE_LOSS, DENSE_STEP, SWITCH = 3.0, 0.5, 780
LOSS = {("blast", 0.8): 3.06, ("blast", 0.9): 3.1, ("blast", 0.95): 3.15, ("rigl_swap", 0.95): 3.14}
STEP = {0.0: DENSE_STEP, 0.8: 0.45, 0.9: 0.38, 0.95: 0.33}
# Seconds of the first steps, which compile.
COMPILING = 20.0
# What rounding does after the switch, nats.
ROUNDING = 2e-4


def make_point(
    method: str = "dense", sparsity: float = 0.0, model: str = "gpt2", execution: str = "auto", seed: int = 0
) -> Point:
    """A point of the grid as it would be expanded."""
    data = "fashion_mnist" if model.startswith("vit") else "technical_text"
    dense, suffix = f"{model}.{data}.dense.seed{seed}", "" if execution == "auto" else f".{execution}"
    training = {"steps": STEPS, "batch": 64, "length": 512, "learning_rate": 6e-4, "dtype": "bfloat16"}
    common = {"grid": GRID, "stage": "train", "architecture": model, "dataset": data, "seed": seed}
    if method == "dense":
        return Point(id=dense, training=training, **common)
    settings = SparsifyConfig(sparsity=sparsity, block=(64, 64), steps=STEPS, execution=execution, **METHODS[method])
    return Point(
        id=f"{model}.{data}.{method}.s{100 * sparsity:g}.b64.seed{seed}{suffix}", parent=dense, method=method,
        sparsity=sparsity, block=(64, 64), sparsify=settings.to_dict(), training=training, **common,
    )  # fmt: skip


def points(model: str = "gpt2") -> list[Point]:
    """Dense, three sparsities, `rigl_swap`, and the sparsest again with masked-dense execution."""
    pruned = [make_point(method, sparsity, model) for method, sparsity in LOSS]
    return [make_point(model=model), *pruned, make_point("blast", 0.95, model, "masked")]


def loss_at(step: int, final: float) -> float:
    """Falls from 10 nats to the final loss."""
    return final + (10 - final) * math.exp(-6 * step / STEPS) - (10 - final) * math.exp(-6)


def seconds_at(point: Point, step: int) -> float:
    """Seconds until a step was done."""
    before = min(step + 1, SWITCH) if _switches(point) else step + 1
    return DENSE_STEP * before + STEP[point.sparsity] * (step + 1 - before)


def _switches(point: Point) -> bool:
    return point.method != "dense" and point.sparsify["execution"] != "masked"


def make_record_of(point: Point, hardware: str = GPU, timed: bool = True) -> dict[str, Any]:
    """A record; with `timed`, its `run` part has the training seconds until each evaluation."""
    final = LOSS.get((point.method, point.sparsity), DENSE_LOSS)
    steps, checks = list(range(0, STEPS, 26)), list(range(EVERY - 1, STEPS, EVERY))

    def off(step: int) -> float:
        return ROUNDING * math.sin(step) if _switches(point) and step >= SWITCH else 0.0

    curves = {
        "train_loss": [steps, [loss_at(step, final) + 0.03 * math.sin(step) + off(step) for step in steps]],
        "validation_loss": [checks, [loss_at(step, final) + off(step) for step in checks]],
    }
    if point.method != "dense":
        curves["sparsity_target"] = [steps, [min(point.sparsity, step / 1200) for step in steps]]
        curves["sparse_execution"] = [steps, [float(_switches(point) and step >= SWITCH) for step in steps]]
    result = {
        "metrics": [{"metric": "loss", "task": None, "unit": "nats/token", "value": final, "low": None, "high": None,
                     "spread": None, "n": 128, "better": "lower"}],
        "curves": {name: {"unit": "nats/token", "step": x, "value": y} for name, (x, y) in curves.items()},
        "sparsity": {"target": point.sparsity, "achieved": point.sparsity, "matrices": {}},
        "dataset": {"name": point.dataset, "digest": "sha256:d", "counts": {}},
    }  # fmt: skip
    run = run_part(hardware, point.id, gpu="Imaginary")
    if timed:
        whole = [seconds_at(point, step) for step in checks]
        run["training_seconds"] = {
            "step": checks,
            "value": whole,
            "compiling": [COMPILING] * len(checks),
            "updating": [0.01 * seconds for seconds in whole],
        }
    return make_record(point, status="ok", result=result, run=run)


def write_runs(folder: Path, skip: str | None = None, models: tuple[str, ...] = ("gpt2", "vit-s-4")) -> Path:
    """Writes the records of a grid; the point `skip` is planned but not run."""
    planned = [point for model in models for point in points(model)]
    write_json(folder / "plan.json", [point.to_dict() for point in planned])
    for point in planned:
        if point.id != skip:
            write_json(folder / "records" / f"{point.id}.json", make_record_of(point))
    return folder
