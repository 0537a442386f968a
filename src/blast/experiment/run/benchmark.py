"""One benchmark point: runs its suite and returns the `result` part of its record."""

from __future__ import annotations

import importlib
from typing import Any

from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point


def run_benchmark_point(point: Point, folder: GridFolder) -> dict[str, Any]:
    """Runs `blast.benchmark.<suite>`; `folder` is not used, as a benchmark leaves nothing but numbers."""
    suite = importlib.import_module(f"blast.benchmark.{point.benchmark['suite']}")
    metrics = suite.measure(point.architecture, point.sparsity, point.block, point.seed, point.benchmark)
    result = {
        "metrics": metrics,
        "curves": {},
        "sparsity": {"target": point.sparsity, "achieved": point.sparsity, "matrices": {}},
    }
    if lost := [str(entry["tokens"]) for entry in metrics if entry.get("unfinished")]:
        result["unfinished"] = (
            f"its time was over before {', '.join(lost)} tokens were timed; "
            "run again, as compiled kernels are kept, or raise 'seconds' in the config."
        )
    return result
