"""Invented records of the suite `kernels`, for tests of its views. Nothing in them was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fake_records import GRID, run_part

from blast import architectures
from blast.benchmark.settings import settings_of
from blast.experiment.plan.point import Point
from blast.experiment.records.record import make_record
from blast.files import write_json

GPU = "imaginary-gpu"
TOKENS = (1, 16, 128, 2048, 8192)
CURVE = (1, 2, 3, 5, 16, 17, 33, 64, 129, 200, 333, 512, 1300, 2048)
MODELS = ("llama-3.1-405b", "llama-3.1-8b", "vit-l-16", "gpt2-xl")


def make_point(model: str, sparsity: float, block: tuple[int, int], variant: str = "", **settings: Any) -> Point:
    """A point of the suite as the grid would expand it."""
    label = f"b{block[0]}" if block[0] == block[1] else f"b{block[0]}x{block[1]}"
    return Point(
        id=f"kernels-{model}.bfloat16.s{100 * sparsity:g}.{label}.seed0{variant}", grid=GRID, stage="benchmark",
        architecture=model, method="blast", sparsity=sparsity, block=block,
        benchmark={**settings_of("kernels"), "suite": "kernels", "tokens": list(TOKENS), "dtype": "bfloat16",
                   "repeats": 20} | settings,
    )  # fmt: skip


def _entry(metric: str, unit: str, value: float | None, provider: str, tokens: int, **more: Any) -> dict[str, Any]:
    entry = {"metric": metric, "task": None, "unit": unit, "value": value, "low": None, "high": None, "spread": None,
             "n": None, "better": "lower", "provider": provider, "tokens": tokens, "dtype": "bfloat16"}  # fmt: skip
    if metric == "latency" and value is not None:
        entry |= {"low": 0.97 * value, "high": 1.05 * value, "spread": "q20-80", "n": 20}
    return entry | more


def make_record_of(point: Point, hardware: str = GPU) -> dict[str, Any]:
    """Timings that look like a GPU's: faster with sparsity, size and few tokens."""
    shape, metrics = architectures.get(point.architecture).shape, []
    worth = {128: 1.0, 64: 0.8, 32: 0.55}[min(point.block)] * min(1.0, (shape.hidden / 8192) ** 0.3)
    ties = (False, True) if shape.gated else (None,)
    for tokens in TOKENS:
        dense = 2e-11 * shape.hidden * shape.ffn * max(1.0, tokens / 200)
        for tied in ties:
            ours = dense * (1 - point.sparsity) ** worth * (0.9 if tied else 1.0) * (1.1 if tokens > 64 else 1.0)
            more = {"setting": {"mask": "uniform"}} | ({} if tied is None else {"tied": tied})
            bound = {1: "launches", 16: "memory", 128: "memory", 2048: "L2", 8192: "arithmetic"}[tokens]
            facts = {"setting": {"mask": "uniform", "bound": bound, "bound_ms": 0.7 * ours}}
            metrics.append(_entry("latency", "ms", ours, "ours", tokens, **more))
            share = round(0.95 - 0.25 * point.sparsity**4 - 0.03 * TOKENS.index(tokens), 6)
            metrics.append(_entry("roofline_fraction", "fraction", share, "ours", tokens, **(more | facts)))
            skipped = {"setting": {"mask": "uniform", "dead_hidden": 0.12}}
            metrics.append(_entry("latency", "ms", 0.8 * ours, "ours_skipped", tokens, **(more | skipped)))
            if tokens <= 64:
                rounded = {"setting": {"mask": "uniform", "quantization_error": 0.0421}}
                metrics.append(_entry("latency", "ms", 0.625 * ours, "ours_fp8", tokens, **(more | rounded)))
        metrics.append(_entry("latency", "ms", dense, "dense_eager", tokens))
        metrics.append(_entry("latency", "ms", 0.95 * dense, "dense_compiled", tokens))
        if point.benchmark["peers"] and tokens in (16, 2048):
            facts = {"setting": {"mask": "uniform", "tuned": True}}
            metrics.append(_entry("latency", "ms", 0.9 * dense, "torch_bsr", tokens, **facts))
            metrics.append(_entry("latency", "ms", 0.4 * dense, "stk", tokens, setting={"mask": "uniform"}))
            cause = {"setting": {"mask": "uniform", "cause": "the package blksprs is not installed"}}
            metrics.append(_entry("latency", "ms", None, "blksprs", tokens, status="not run", **cause))
    common = {"hidden": shape.hidden, "ffn": shape.ffn}
    if point.benchmark["down_block"] == "transposed":
        common["down_block"] = "transposed"
    for entry in metrics:
        entry["setting"] = entry.get("setting", {}) | common
    result = {"metrics": metrics, "curves": {}, "sparsity": {"target": point.sparsity, "achieved": point.sparsity}}
    return make_record(point, status="ok", result=result, run=run_part(hardware, point.id, gpu="Imaginary"))


def points() -> list[Point]:
    """Four models with all sparsities and their legal blocks, two points of transposed ones, and two with peers."""
    made = []
    for model in MODELS:
        blocks = (
            [(64, 64), (32, 32)]
            if model in ("gpt2-xl", "smollm2-135m")
            else [(128, 128), (64, 128), (64, 64), (32, 128), (32, 32)]
        )
        made += [make_point(model, sparsity, block) for sparsity in (0.7, 0.8, 0.9, 0.95) for block in blocks]
    made += [make_point("gpt2-xl", s, (128, 64), ".transposed", down_block="transposed") for s in (0.7, 0.95)]
    peers = ["torch_bsr", "stk", "blksprs"]
    made += [make_point("llama-3.1-8b", s, (128, 128), ".peers", peers=peers) for s in (0.8, 0.95)]
    return made


def write_kernels(folder: Path, skip: str | None = None) -> Path:
    """Writes a grid of kernel benchmarks, one of which may be planned and not run, and a curve of many token counts."""
    curve = make_curve("llama-3.2-1b")
    write_json(folder / "plan.json", [*(point.to_dict() for point in points()), curve["point"]])
    write_json(folder / "records" / f"{curve['point']['id']}.json", curve)
    for point in points():
        if point.id != skip:
            write_json(folder / "records" / f"{point.id}.json", make_record_of(point))
    return folder


def make_curve(model: str = "llama-3.1-8b", slow: dict[int, float] | None = None, ties: tuple = (False,)) -> dict:
    """A record of many token counts, whose times of ours grow with the count; those of `slow` are multiplied."""
    point = make_point(model, 0.95, (128, 128), ".tokens", tokens=list(CURVE))
    metrics = []
    for tokens in CURVE:
        times = {"dense_eager": 0.1 + 1e-3 * tokens}
        for tied in ties:
            ours = (0.01 + 1e-4 * tokens) * (slow or {}).get(tokens, 1.0)
            setting = {"mask": "uniform", "hidden": 4096, "ffn": 14336}
            metrics.append(_entry("latency", "ms", ours, "ours", tokens, setting=setting, tied=tied))
        metrics += [_entry("latency", "ms", value, name, tokens, setting={}) for name, value in times.items()]
    result = {"metrics": metrics, "curves": {}, "sparsity": {"target": 0.95, "achieved": 0.95}}
    return make_record(point, status="ok", result=result, run=run_part(GPU, point.id, gpu="Imaginary"))
