"""Invented records of the suite `memory`, for tests of its views. Nothing in them was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fake_kernels import GPU
from fake_records import GRID, run_part

from blast.benchmark.settings import settings_of
from blast.experiment.analysis import gpu_cost
from blast.experiment.plan.point import Point
from blast.experiment.records.record import make_record
from blast.files import write_json

# How much more than computed the invented peaks are.
MORE = 1.05


def make_point(model: str, sparsity: float) -> Point:
    """A point of the suite as the grid would expand it."""
    settings = settings_of("memory", {"batches": [1, 32]})
    return Point(
        id=f"memory-{model}.bfloat16.s{100 * sparsity:g}.b128.seed0", grid=GRID, stage="benchmark",
        architecture=model, method="blast", sparsity=sparsity, block=(128, 128),
        benchmark={**settings, "suite": "memory", "tokens": [8192], "dtype": "bfloat16", "repeats": 20},
    )  # fmt: skip


def make_memory_record(point: Point, hardware: str = GPU) -> dict[str, Any]:
    """Peaks of 1.05 times the computed memory, dense and ours; the dense model of 70B does not fit."""
    metrics = []
    for provider, sparsity in (("dense_eager", 0.0), ("ours", point.sparsity)):
        for serving in gpu_cost.SERVINGS:
            memory = gpu_cost.computed_memory(point.architecture, sparsity, serving)
            lost = provider == "dense_eager" and point.architecture == "llama-3.1-70b"
            entry = {"metric": "prefill_peak_bytes", "task": None, "unit": "bytes", "low": None, "high": None,
                     "spread": None, "n": None, "better": "lower", "provider": provider, "tokens": serving.context,
                     "batch": serving.batch, "dtype": "bfloat16"}  # fmt: skip
            if lost:
                metrics.append(entry | {"value": None, "status": "not run", "setting": {"cause": "it does not fit"}})
            else:
                value = {"value": MORE * memory.total, "setting": {"computed": memory.total}}
                metrics.append(entry | value)
    result = {
        "metrics": metrics,
        "curves": {},
        "sparsity": {"target": point.sparsity, "achieved": point.sparsity, "matrices": {}},
    }
    return make_record(point, status="ok", result=result, run=run_part(hardware, point.id, gpu="Imaginary"))


def write_memory(grid_dir: Path, models: tuple[str, ...] = ("llama-3.1-8b", "llama-3.1-70b")) -> Path:
    """Writes records of two sparsities of each model into a grid folder; returns the folder."""
    points = [make_point(model, sparsity) for model in models for sparsity in (0.9, 0.95)]
    write_json(grid_dir / "plan.json", [point.to_dict() for point in points])
    for point in points:
        write_json(grid_dir / "records" / f"{point.id}.json", make_memory_record(point))
    return grid_dir
