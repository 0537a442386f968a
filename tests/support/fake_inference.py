"""Invented records of the suite `inference`, for tests of its views. Nothing in them was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fake_kernels import GPU
from fake_records import GRID, run_part

from blast.benchmark.settings import settings_of
from blast.experiment.plan.point import Point
from blast.experiment.records.record import make_record
from blast.files import write_json

SPARSITIES, SEQUENCES, PROMPTS = (0.7, 0.8, 0.9, 0.95), (1, 8, 64), (128, 2048)


def latency(provider: str, sparsity: float, sequences: int, prompt: int) -> float:
    """Invented milliseconds of a step."""
    dense = 1.0 + 0.02 * sequences + 0.0002 * prompt
    return dense if provider == "dense_compiled" else dense * (1 - 0.5 * sparsity)


def write_inference(folder: Path, models: tuple[str, ...] = ("llama-3.2-1b", "gpt2-xl"), hardware: str = GPU) -> None:
    """Writes records of some models into a grid folder."""
    for model in models:
        for sparsity in SPARSITIES:
            side = 128 if model.startswith("llama") else 64
            point = Point(
                id=f"inference-{model}.bfloat16.s{100 * sparsity:g}.b{side}.seed0", grid=GRID, stage="benchmark",
                architecture=model, method="blast", sparsity=sparsity, block=(side, side),
                benchmark={**settings_of("inference"), "suite": "inference", "tokens": list(SEQUENCES),
                           "dtype": "bfloat16", "repeats": 20},
            )  # fmt: skip
            metrics: list[dict[str, Any]] = []
            for sequences in SEQUENCES:
                for prompt in PROMPTS:
                    for provider in ("dense_compiled", "ours"):
                        taken = latency(provider, sparsity, sequences, prompt)
                        for metric, unit, value in (
                            ("latency", "ms", taken),
                            ("first_token_latency", "ms", 5 * taken),
                            ("energy", "J/token", 0.4 * taken / sequences),
                            ("power_idle", "W", 75.0),
                        ):
                            metrics.append({
                                "metric": metric, "task": None, "unit": unit, "value": value, "low": None, "high": None,
                                "spread": None, "n": None, "better": "lower", "provider": provider,
                                "tokens": sequences, "batch": sequences, "dtype": "bfloat16",
                                "setting": {"prompt": prompt, "mask": "uniform"},
                            })  # fmt: skip
            record = make_record(
                point, status="ok", result={"metrics": metrics}, run=run_part(hardware, point.id, gpu="an invented GPU")
            )
            write_json(folder / "records" / f"{point.id}.json", record)
