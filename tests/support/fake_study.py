"""Invented records of a quality study: trials of learning rates, levers, small dense models, teachers, lengths.

The points are those of a real config. Nothing was measured.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from fake_kernels import GPU
from fake_records import run_part

from blast import architectures, datasets
from blast.benchmark.inputs.mask_file import write_mask_file
from blast.experiment.plan.config import parse
from blast.experiment.plan.grid import expand
from blast.experiment.plan.point import Point
from blast.experiment.records.record import make_record
from blast.files import write_json

WSD = {"learning_rate_schedule": "wsd", "decay": 0.25, "final_learning_rate": 0.0}
TEXT = {"architectures": ["gpt2"], "datasets": ["technical_text"], "blocks": [64], "sparsity": [0.8, 0.95]}
IMAGES = {"architectures": ["vit-s-4"], "datasets": ["fashion_mnist"], "blocks": [64], "seeds": [0, 1, 2]}
TUNED = {"architectures": ["smollm2-135m"], "datasets": ["technical_text"], "blocks": [32], "start": "pretrained"}
ALL = {"methods": ["blast", "small_dense"], "seeds": [0]}
CONFIG: dict[str, Any] = {
    "name": "quality",
    "training": {
        "default": {"steps": 1600, "batch": 64, "length": 512, "learning_rate": 9e-4, **WSD, "evaluate_every": 100},
        "fashion_mnist": {"steps": 4000, "batch": 256, "learning_rate": 1e-3},
    },
    "sparsify": {"update_every": 50, "grow_decay": "cosine"},
    "data": {"technical_text": {"tokenizer": "gpt2"}},
    "grid": [
        {**TEXT, **ALL, "seeds": [0, 1, 2]},
        {**TEXT, **ALL, "variant": "lr6e-4", "training": {"learning_rate": 6e-4}},
        {**TEXT, **ALL, "variant": "lr2.4e-3", "training": {"learning_rate": 2.4e-3}},
        {**TEXT, "sparsity": [0.9], "seeds": [0, 1, 2]},
        {**TEXT, "methods": ["small_dense"], "sparsity": [0.95], "ffn": 448, "variant": "live-width"},
        {**TEXT, "methods": ["rigl_swap", "random", "one_shot"]},
        {**TEXT, "methods": ["dense", "blast"], "variant": "taught", "distillation": {}},
        # Levers: one with rows at both sparsities, one at .95 alone, and another schedule.
        {**TEXT, "variant": "constant-growth", "sparsify": {"grow_decay": "constant"}},
        {**TEXT, "sparsity": [0.95], "variant": "dense-start", "sparsify": {"dense_start": 0.1}},
        {**TEXT, "variant": "cosine", "training": {"learning_rate_schedule": "cosine"}},
        # A shorter run, which decays at its own end.
        {**TEXT, "sparsity": [0.95], "variant": "steps1200", "training": {"steps": 1200}},
        {**IMAGES, "methods": ["blast", "small_dense", "random"], "sparsity": [0.8, 0.95]},
        *(
            {**TUNED, "sparsity": [0.5, 0.8, 0.95], "variant": f"steps{steps}", "training": {"steps": steps}}
            for steps in (400, 800, 1600)
        ),
    ],
}
# Invented: score of dense, percent that 95 % costs by method, and percent that a learning rate costs.
DENSE = {"gpt2": 1.19, "vit-s-4": 0.885, "smollm2-135m": 0.85}
COST = {"dense": 0.0, "blast": 2.6, "rigl_swap": 3.1, "random": 6.0, "small_dense": 7.5, "one_shot": 60.0}
OF_RATE = {6e-4: 0.4, 9e-4: 0.0, 2.4e-3: 5.0, 1e-3: 0.0}
BITS_TO_NATS = 1.9


@cache
def points() -> dict[str, Point]:
    """The points of `CONFIG` by id."""
    return expand(parse(CONFIG, Path("study.yaml"))).points


def cost(point: Point) -> float:
    """Percent that a point loses, without noise."""
    lost = OF_RATE[point.training["learning_rate"]] + 4 * (point.training.get("learning_rate_schedule") != "wsd")
    if point.method == "small_dense" and point.ffn == 448:
        lost += 2.2
    elif point.sparsity:
        lost += COST[point.method] * (point.sparsity / 0.95) ** 4
    lost -= 2.0 * (point.distillation is not None) - 0.3 * ((point.sparsify or {}).get("grow_decay") != "cosine")
    if point.start == "pretrained" and point.sparsity:
        lost += 60 * point.sparsity**3 * (1600 / point.training["steps"]) ** 0.6
    return lost


def _metric(metric: str, value: float, error: float, **more: Any) -> dict[str, Any]:
    return {"metric": metric, "task": None, "unit": "bits/byte", "value": value, "low": value - error,
            "high": value + error, "spread": "stderr", "n": 2000, "better": "lower"} | more  # fmt: skip


def seconds_a_step(point: Point) -> float:
    """Invented time of a training step."""
    share = {"dense": 1.0, "small_dense": 1 - 0.5 * point.sparsity}.get(point.method, 1 - 0.3 * point.sparsity)
    return 0.1 * share


def make_record_of(point: Point, hardware: str = GPU) -> dict[str, Any]:
    """A record of a point; a learning rate of 2.4e-3 makes blast fail."""
    if point.method == "blast" and point.training["learning_rate"] == 2.4e-3:
        return make_record(point, status="failed", result={}, run=run_part(hardware, point.id, "Imaginary"),
                           cause="the loss became NaN at step 40; lower the learning rate.", log="x.log")  # fmt: skip
    noise = np.random.default_rng(sum(map(ord, point.id))).normal(0, 0.1, 3)
    lost, dense = cost(point), DENSE[point.architecture]
    language = datasets.get(point.dataset).MODALITY == "language"
    unit = "nats/token" if language else "nats"
    if language:
        bits = dense * (1 + (lost + noise[0]) / 100)
        final = bits * BITS_TO_NATS
        metrics = [
            _metric("bits_per_byte", bits, 0.004),
            _metric("loss", final, 0.008, unit=unit),
            _metric("validation_bits_per_byte", 0.98 * dense * (1 + (lost + noise[1]) / 100), 0.004),
            _metric("train_bits_per_byte", 0.9 * dense * (1 + (0.9 * lost + noise[2]) / 100), 0.003),
        ]
    else:
        accuracy = dense * (1 - (lost + noise[0]) / 400)
        final, fraction = 2 * (1 - accuracy), {"unit": "fraction", "better": "higher", "setting": {"chance": 0.1}}
        metrics = [
            _metric("top1", accuracy, 0.003, **fraction),
            _metric("validation_top1", accuracy + 0.002 + noise[1] / 400, 0.003, **fraction),
            _metric("train_top1", min(0.999, accuracy + 0.05), 0.001, **fraction),
        ]
    steps, every = point.training["steps"], 400
    checks = list(range(every - 1, steps, every))
    falling = [final + (8 - final) * math.exp(-7 * (step + 1) / steps) for step in checks]
    curves = {"validation_loss": falling, "train_loss": [0.97 * loss for loss in falling]}
    shape = architectures.get(point.architecture).shape
    achieved = 1 - point.ffn / shape.ffn if point.ffn else round(point.sparsity * 1.001, 4)
    total = 124_000_000 if language else 14_000_000
    result = {
        "metrics": metrics,
        "curves": {name: {"unit": unit, "step": checks, "value": values} for name, values in curves.items()},
        "sparsity": {"target": point.sparsity, "achieved": achieved, "matrices": {}} if point.sparsity else None,
        "dataset": {"name": point.dataset, "digest": "sha256:d", "counts": {}},
        "parameters": {
            "total": total - (int(shape.mlp_weights * achieved) if point.ffn else 0),
            "prunable": shape.mlp_weights if point.sparsity else 0, "live": int(shape.mlp_weights * (1 - achieved)),
        },
        "artifacts": {},
    }  # fmt: skip
    run = run_part(hardware, point.id, "Imaginary")
    if language:
        run["scoring"] = {"seconds": 10 * seconds_a_step(point), "tokens": 1_000_000}
    if point.start != "parent":
        whole = [5.0 + seconds_a_step(point) * (step + 1) for step in checks]
        run["training_seconds"] = {"step": checks, "value": whole, "compiling": [5.0] * len(checks),
                                   "updating": [0.0] * len(checks)}  # fmt: skip
    return make_record(point, status="ok", result=result, run=run)


def write_study(folder: Path, skip: str | None = None) -> Path:
    """Writes the records of the whole study; the point `skip` is planned but not run."""
    write_json(folder / "plan.json", [point.to_dict() for point in points().values()])
    for name, point in points().items():
        if name != skip:
            write_json(folder / "records" / f"{name}.json", make_record_of(point))
    return folder


def write_masks(folder: Path) -> None:
    """Writes last masks of the pruned GPT-2 of seed 0 as they are recorded; later layers keep more blocks."""
    for point in points().values():
        if point.method != "blast" or point.architecture != "gpt2" or point.seed:
            continue
        draw, masks = np.random.default_rng(3), {}
        for layer in range(12):
            live_columns = draw.random(48) < (1 - point.sparsity) * (1 + layer / 6)
            live_columns[layer] = True
            fc = (draw.random((48, 12)) < 0.5) & live_columns[:, None]
            masks[f"transformer.h.{layer}.mlp.c_fc"] = fc
            masks[f"transformer.h.{layer}.mlp.c_proj"] = (draw.random((12, 48)) < 0.5) & live_columns[None, :]
        facts = {"grid": point.grid, "point": point.id, "model": point.architecture, "dataset": point.dataset,
                 "method": point.method, "sparsity": point.sparsity, "block": list(point.block), "seed": 0,
                 "step": 1199, "record": "sha256:r", "date": "2026-11-29"}  # fmt: skip
        write_mask_file(folder / "masks" / point.grid / f"{point.id}.safetensors", masks, facts)
