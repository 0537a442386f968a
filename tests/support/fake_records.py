"""Invented records with the format of real ones, for tests of figures and tables. Nothing was measured."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from blast.experiment.plan.point import Point
from blast.experiment.records.record import make_record
from blast.files import write_json

GRID = "default"
HARDWARE = "cpu-imaginary-processor"
STEPS, HOLD = 900, 0.2
LANGUAGE, VISION = ("gpt2-nano", "llama-nano"), ("vit-nano",)
# Invented: the dense score of the main metric by model and dataset.
DENSE = {
    ("gpt2-nano", "pystdlib"): 2.17,
    ("llama-nano", "pystdlib"): 2.11,
    ("vit-nano", "fashion_mnist"): 0.829,
    ("vit-nano", "digits"): 0.961,
}
# Invented: percent lost at 95 % by method.
LOST = {"dense": 0.0, "blast": 4.2, "rigl_swap": 4.6, "one_shot": 30.0, "random": 12.0}
MATRIX = {"gpt2-nano": ("transformer.h.0.mlp.c_fc", (512, 128)),
          "llama-nano": ("model.layers.0.mlp.up_proj", (384, 128)),
          "vit-nano": ("encoder.layers.encoder_layer_0.mlp.0", (256, 64))}  # fmt: skip


def run_part(hardware: str = HARDWARE, point: str = "", gpu: str | None = None) -> dict[str, Any]:
    """The `run` part of an invented record."""
    return {
        "wall_s": 12.5, "started": "2026-11-22T10:00:00+00:00", "finished": "2026-11-22T10:00:12+00:00",
        "commit": "0123abc", "dirty": False, "fingerprint": "sha256:f", "lock": "sha256:l",
        "versions": {"python": "3.11.7", "torch": "2.15.0"}, "host": "imaginary", "hardware": hardware,
        "gpu": gpu, "driver": None, "threads": 1, "command": "python -m blast job one.json two.json",
    }  # fmt: skip


def make_point(model: str, dataset: str, method: str, sparsity: float, seed: int) -> Point:
    """A training point as the grid would expand it."""
    dense = f"{model}.{dataset}.dense.seed{seed}"
    pruned = method != "dense"
    name = f"{model}.{dataset}.{method}.s{100 * sparsity:g}.b16.seed{seed}" if pruned else dense
    return Point(
        id=name, grid=GRID, stage="train", architecture=model, dataset=dataset, method=method,
        sparsity=sparsity, block=(16, 16) if pruned else None, seed=seed, parent=dense if pruned else None,
        sparsify={"tie_gate_up": False, "sparsity": sparsity} if pruned else None,
        training={"steps": STEPS, "batch": 32, "length": 128, "learning_rate": 1e-3},
    )  # fmt: skip


def default_points() -> Iterator[Point]:
    """The points of the default grid."""
    for model, dataset in DENSE:
        for seed in (0, 1):
            yield make_point(model, dataset, "dense", 0.0, seed)
        for sparsity in (0.7, 0.8, 0.9, 0.95):
            for seed in (0, 1) if sparsity == 0.95 else (0,):
                yield make_point(model, dataset, "blast", sparsity, seed)
        for method in ("one_shot", "random", "rigl_swap"):
            yield make_point(model, dataset, method, 0.95, 0)


def _metric(metric: str, value: float, error: float | None, n: int, **more: Any) -> dict[str, Any]:
    entry = {
        "metric": metric,
        "task": None,
        "unit": "fraction",
        "value": value,
        "low": None,
        "high": None,
        "spread": None,
        "n": n,
    }
    if error is not None:
        entry |= {"low": value - error, "high": value + error, "spread": "stderr"}
    return entry | more


def _scores(point: Point, noise: np.random.Generator) -> tuple[list[dict], list[dict], float]:
    """Metrics of the record, metrics of lm-eval, and the final loss of the curves."""
    dense = DENSE[point.architecture, point.dataset]
    share = (point.sparsity / 0.95) ** 5
    lost = (LOST[point.method] * share + noise.normal(0, 0.25)) / 100
    if point.architecture in LANGUAGE:
        bits = dense * (1 + lost)
        choice = max(0.25, 0.62 - 2.2 * max(lost, 0)) + noise.normal(0, 0.004)
        own = [_metric("loss", bits * 1.9, 0.02, 360, unit="nats/token", better="lower"),
               _metric("bits_per_byte", bits, None, 360, unit="bits/byte", better="lower")]  # fmt: skip
        later = [
            _metric("bits_per_byte", bits, 0.03, 64, unit="bits/byte", better="lower", task="pystdlib_heldout"),
            _metric("acc", choice, 0.02, 600, better="higher", task="pystdlib_next_line", setting={"chance": 0.25}),
        ]
        return own, later, bits * 1.9
    top1 = dense * (1 - lost)
    count = 10000 if point.dataset == "fashion_mnist" else 360
    error = math.sqrt(top1 * (1 - top1) / count)
    own = [_metric("top1", top1, error, count, better="higher", setting={"chance": 0.1})]
    own.append(_metric("top5", 0.995, 0.001, count, better="higher", setting={"chance": 0.5}))
    return own, [], 1.6 * (1 - top1) + 0.2


def sparsity_at(step: int, final: float) -> float:
    """Cubic schedule, zero from the start, held for the last fifth."""
    return final * (1 - max(0.0, 1 - step / (STEPS * (1 - HOLD))) ** 3)


def _curves(point: Point, final_loss: float, noise: np.random.Generator) -> dict[str, Any]:
    steps = list(range(0, STEPS + 1, 25))
    start = 7.6 if point.architecture in LANGUAGE else 2.3
    loss = [final_loss + (start - final_loss) * math.exp(-4.5 * step / STEPS) for step in steps]
    curves = {
        "train_loss": {"unit": "nats/token", "step": steps, "value": [x - 0.05 + noise.normal(0, 0.06) for x in loss]},
        "validation_loss": {"unit": "nats/token", "step": steps[::4], "value": loss[::4]},
    }
    if point.method != "dense":
        target = [sparsity_at(step, point.sparsity) for step in steps]
        held = [s * (0.93 if step < STEPS * (1 - HOLD) else 1.0) for s, step in zip(target, steps, strict=True)]
        curves |= {
            "sparsity_target": {"unit": "fraction", "step": steps, "value": target},
            "sparsity_achieved": {"unit": "fraction", "step": steps, "value": held},
        }
    return curves


def _masks(point: Point) -> dict[str, np.ndarray]:
    name, (rows, cols) = MATRIX[point.architecture]
    rng = np.random.default_rng(5)
    score = rng.random((rows // 16, cols // 16)) + 0.6 * np.sin(np.arange(cols // 16) * 1.3) ** 2
    masks = {}
    for step in (0, 100, 200, 300, 450, 600, 720, 900):
        score = score + 0.12 * rng.normal(size=score.shape) * (step < 720)
        live = max(1, round((1 - sparsity_at(step, point.sparsity)) * score.size))
        mask = np.zeros(score.size, np.uint8)
        mask[np.argsort(-score, axis=None)[:live]] = 1
        for layer in (0, 1):
            masks[f"step{step:06d}/{name.replace('.0.', f'.{layer}.', 1)}"] = np.roll(mask, layer).reshape(score.shape)
    return masks


def masks_file(point: Point) -> bytes:
    """The `masks.safetensors` of an invented point."""
    return save(_masks(point))


def _masks_artifact(point: Point) -> dict[str, str]:
    return {"path": "masks.safetensors", "digest": "sha256:" + hashlib.sha256(masks_file(point)).hexdigest()}


def make_training_record(point: Point, hardware: str = HARDWARE) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """A record and its language metrics (None for images)."""
    noise = np.random.default_rng(sum(map(ord, point.id)))
    own, later, final_loss = _scores(point, noise)
    dense_bytes = {"gpt2-nano": 2_600_000, "llama-nano": 2_700_000, "vit-nano": 900_000}[point.architecture]
    mlp = dense_bytes // 2
    sparse_mlp = int(mlp * (1 - point.sparsity) * 1.02) if point.sparsity else mlp
    own += [
        _metric("weights_bytes", dense_bytes - mlp + sparse_mlp, None, 1, unit="bytes", better="lower"),
        _metric("mlp_bytes", sparse_mlp, None, 1, unit="bytes", better="lower"),
        _metric("checkpoint_bytes", dense_bytes - mlp + sparse_mlp + 9000, None, 1, unit="bytes", better="lower"),
    ]
    result = {
        "metrics": own,
        "curves": _curves(point, final_loss, noise),
        "sparsity": {"target": point.sparsity, "achieved": round(point.sparsity * 0.9995, 6), "matrices": {}},
        "dataset": {"name": point.dataset, "digest": "sha256:d", "counts": {}},
        "parameters": {"total": dense_bytes // 4, "prunable": mlp // 4, "live": sparse_mlp // 4},
        "artifacts": {"masks": _masks_artifact(point)} if point.method != "dense" else {},
    }
    record = make_record(point, status="ok", result=result, run=run_part(hardware, point.id))
    if not later:
        return record, None
    language = {"format": 1, "id": point.id, "record_digest": record["record_digest"], "status": "ok", "cause": None}
    return record, language | {"metrics": later, "versions": {"lm_eval": "0.4.13"}}


def make_benchmark_record(
    model: str, sparsity: float, speed: float, hardware: str = HARDWARE, gpu: str | None = None, suite: str = "mlp"
) -> dict[str, Any]:
    """Timings of ours and dense at three token counts; ours `speed` times faster at the largest."""
    tokens = [16, 128, 512]
    point = Point(
        id=f"{suite}-{model}.float32.s{100 * sparsity:g}.b32.seed0", grid=GRID, stage="benchmark", architecture=model,
        method="blast", sparsity=sparsity, block=(32, 32),
        benchmark={"suite": suite, "tokens": tokens, "dtype": "float32", "repeats": 20},
    )  # fmt: skip
    metrics = []
    for place, count in enumerate(tokens):
        dense = 0.05 * count
        ours = dense / (speed * (0.6 + 0.2 * place))
        for provider, value in (("ours", ours), ("dense_eager", dense)):
            metrics.append({"metric": "latency", "task": None, "unit": "ms", "value": value, "low": 0.95 * value,
                            "high": 1.07 * value, "spread": "q20-80", "n": 20, "better": "lower",
                            "provider": provider, "tokens": count, "dtype": "float32"})  # fmt: skip
    return make_record(point, status="ok", result={"metrics": metrics}, run=run_part(hardware, point.id, gpu))


def make_failed_record(
    point: Point, cause: str = "the loss became NaN at step 40; lower the learning rate."
) -> dict[str, Any]:
    """A record of a point that failed."""
    return make_record(
        point, status="failed", result={}, run=run_part(HARDWARE, point.id), cause=cause, log="logs/x.log"
    )


def write_grid(folder: Path, fail: str | None = None, skip: str | None = None) -> Path:
    """Writes a whole invented default grid.

    Args:
        folder: Where `plan.json`, `records/`, `language/` and `points/` are made.
        fail: Id of a point that fails.
        skip: Id of a point that was not run.
    """
    timed = [
        make_benchmark_record(model, sparsity, best * (0.05 / (1 - sparsity)) ** 0.8)
        for model, best in (("gpt2", 6.0), ("llama-3.2-1b", 11.0))
        for sparsity in (0.7, 0.8, 0.9, 0.95)
    ]
    write_json(folder / "plan.json", [p.to_dict() for p in default_points()] + [record["point"] for record in timed])
    for point in default_points():
        if point.id == skip:
            continue
        if point.id == fail:
            write_json(folder / "records" / f"{point.id}.json", make_failed_record(point))
            continue
        record, language = make_training_record(point)
        write_json(folder / "records" / f"{point.id}.json", json.loads(json.dumps(record)))
        if language:
            write_json(folder / "language" / f"{point.id}.json", language)
        if point.method != "dense":
            (folder / "points" / point.id).mkdir(parents=True)
            (folder / "points" / point.id / "masks.safetensors").write_bytes(masks_file(point))
    for record in timed:
        write_json(folder / "records" / f"{record['point']['id']}.json", record)
    return folder
