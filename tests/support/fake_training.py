"""Invented records of the suite `training_step`, for tests of its views. Nothing in them was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fake_kernels import GPU
from fake_records import GRID, run_part

from blast.benchmark.settings import settings_of
from blast.experiment.plan.point import Point
from blast.experiment.records.record import make_record
from blast.files import write_json

# Invented: milliseconds of a dense step, its MLP's part, and gigabytes of weights, by model.
MODELS = {"gpt2-xl": (400.0, 210.0, 6.2), "gpt2": (50.0, 18.0, 0.5), "llama-3.2-1b": (210.0, 120.0, 4.9),
          "vit-l-16": (190.0, 100.0, 1.2)}  # fmt: skip
SPARSITIES = (0.8, 0.9, 0.95)


def make_point(model: str, sparsity: float, variant: str = "", **settings: Any) -> Point:
    """A point of the suite as the grid would expand it."""
    side = 128 if model.startswith("llama") else 64
    tokens = 25216 if model.startswith("vit") else 8192
    return Point(
        id=f"training_step-{model}.bfloat16.s{100 * sparsity:g}.b{side}.seed0{variant}", grid=GRID, stage="benchmark",
        architecture=model, method="blast", sparsity=sparsity, block=(side, side),
        benchmark={**settings_of("training_step"), "suite": "training_step", "tokens": [tokens], "dtype": "bfloat16",
                   "repeats": 20} | settings,
    )  # fmt: skip


def make_record_of(point: Point, hardware: str = GPU, spread: float | None = 0.01) -> dict[str, Any]:
    """Steps whose MLP takes 1.3 times its share of live blocks, with quantiles that far off unless that is None."""
    dense, mlp, weights = MODELS[point.architecture]
    sparse_mlp = 1.3 * (1 - point.sparsity) * mlp
    optimizer = 0.1 * dense
    tokens, metrics = point.benchmark["tokens"][0], []

    def add(provider: str, metric: str, unit: str, value: float) -> None:
        entry = {"metric": metric, "task": None, "unit": unit, "value": value, "low": None, "high": None,
                 "spread": None, "n": None, "better": "lower", "provider": provider, "tokens": tokens,
                 "batch": 8, "dtype": "bfloat16", "setting": {"mask": "uniform", "length": 1024}}  # fmt: skip
        if metric == "step_time" and spread is not None:
            entry |= {"low": (1 - spread) * value, "high": (1 + spread) * value, "spread": "q20-80", "n": 20}
        metrics.append(entry)

    for provider, own, share in (("dense_compiled", mlp, 1.0), ("ours", sparse_mlp, 1 - 0.6 * point.sparsity),
                                 ("masked_dense", mlp, 1.0)):  # fmt: skip
        spared = optimizer * (1 - share)
        masked = provider == "masked_dense"
        step = dense - mlp + own - spared + (0.03 * dense if masked else 0.0)
        add(provider, "step_time", "ms", step)
        if not masked:
            add(provider, "time_attention", "ms", 0.2 * dense)
            add(provider, "time_mlp", "ms", own)
            add(provider, "time_optimizer", "ms", optimizer - spared)
            add(provider, "time_other", "ms", step - 0.2 * dense - own - optimizer + spared)
        held = 1e9 * weights * share
        for metric, value in (("parameter_bytes", held), ("gradient_bytes", held), ("optimizer_bytes", 2 * held),
                              ("activation_bytes", 1e9 * (4 + 2 * weights * share)),
                              ("peak_bytes", 1e9 * 5.2 + 4.5 * held)):  # fmt: skip
            add(provider, metric, "bytes", value)
    add("masked_dense", "time_mask_update", "ms", 0.2 * dense)
    add("ours", "time_mask_update", "ms", 0.6 * dense)
    result = {"metrics": metrics, "curves": {}, "sparsity": {"target": point.sparsity, "achieved": point.sparsity}}
    return make_record(point, status="ok", result=result, run=run_part(hardware, point.id, gpu="Imaginary"))


def points() -> list[Point]:
    """Four models with three sparsities."""
    return [make_point(model, sparsity) for model in MODELS for sparsity in SPARSITIES]


def write_training(folder: Path, skip: str | None = None) -> Path:
    """Writes a grid of step timings, one of which may be planned and not run."""
    write_json(folder / "plan.json", [point.to_dict() for point in points()])
    for point in points():
        if point.id != skip:
            write_json(folder / "records" / f"{point.id}.json", make_record_of(point))
    return folder


def mlp_record(sparsity: float, hardware: str = GPU) -> dict[str, Any]:
    """A point of the suite `training_mlp`: ours takes 10 ms, compiled dense 40, eager 50, stk 15."""
    point = Point(
        id=f"training_mlp-llama-3.1-8b.bfloat16.s{100 * sparsity:g}.b128.seed0", grid=GRID, stage="benchmark",
        architecture="llama-3.1-8b", method="blast", sparsity=sparsity, block=(128, 128),
        benchmark={**settings_of("training_mlp"), "suite": "training_mlp", "tokens": [8192], "dtype": "bfloat16",
                   "repeats": 20},
    )  # fmt: skip
    entry = {"metric": "latency", "task": None, "unit": "ms", "low": None, "high": None, "spread": None, "n": 20,
             "better": "lower", "tokens": 8192, "dtype": "bfloat16", "tied": False}  # fmt: skip
    facts = {"mask": "uniform", "live_hidden": 0.55}
    metrics = [entry | {"provider": "ours", "value": 10.0, "setting": facts}]
    metrics += [
        entry | {"provider": name, "value": value, "setting": {}}
        for name, value in (("dense_eager", 50.0), ("dense_compiled", 40.0), ("stk", 15.0))
    ]
    lost = {"mask": "every_hidden_live", "cause": "some are dead"}
    metrics.append(entry | {"provider": "ours", "value": None, "status": "not run", "setting": lost})
    result = {"metrics": metrics, "curves": {}, "sparsity": {"target": sparsity, "achieved": sparsity}}
    return make_record(point, status="ok", result=result, run=run_part(hardware, point.id, gpu="Imaginary"))
