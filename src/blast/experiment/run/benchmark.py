"""One benchmark point: runs its suite and returns the `result` part of its record."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point


def run_benchmark_point(point: Point, folder: GridFolder | None = None, code: str = "") -> dict[str, Any]:
    """Runs `measure` of `blast.benchmark.<suite>`; `folder` and `code` are not used, as it writes no files."""
    suite = import_module(f"blast.benchmark.{point.benchmark['suite']}")
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
