"""Tries a claim of the paper here: runs its points, or uses records that are there (`blast reproduce`)."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blast.errors import BlastError
from blast.experiment.analysis.paper_values import PaperValue
from blast.experiment.plan.options import plan_of
from blast.experiment.plan.paths import CHECKOUT, GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.records.state import Left, state_of
from blast.experiment.reproduce.claims import COMPUTED, CPU, MANY, Need

Say = Callable[[str], None]
NOT_RUN = "not run"
# From best to worst; several findings of one claim are as good as the best.
ORDER = ("met", "projected", "undecided", "not met", NOT_RUN)


@dataclass(frozen=True)
class Tried:
    """What a claim came to here.

    Attributes:
        verdict: One of `ORDER`.
        findings: By what was measured: verdict, value, setting.
        seconds: How long it took now.
        measured_here: Whether the findings are from this machine; else they are recorded ones.
    """

    verdict: str
    findings: list[dict[str, Any]]
    seconds: float
    measured_here: bool


def try_claim(value: PaperValue, need: Need, out: Path | None, recorded: Path, say: Say, only_records: bool) -> Tried:
    """Runs the points of a claim as far as this machine can, and judges them.

    Args:
        value: The claim.
        need: What it needs.
        out: Folder of a grid; finished points in it are not run again. None for `results/<grid>`.
        recorded: `results/recorded`, for claims that need a machine that is not here.
        say: Says what happens.
        only_records: Whether to run nothing.

    Raises:
        BlastError: if a point failed.
    """
    started = time.monotonic()
    if need.kind == COMPUTED:
        return _judged(value, Path("no grid"), Path("no records"), started, here=True)
    if need.kind != CPU and not _has_gpu(need):
        say(f"this machine has not {need.hardware}: nothing is run, and what was recorded is shown")
        return _judged(value, Path("no grid"), recorded, started, here=False)
    plan = plan_of(CHECKOUT / "config" / str(need.config))
    points = [point for name, point in plan.points.items() if any(fnmatch.fnmatch(name, each) for each in need.points)]
    folder = GridFolder(out or Path("results", points[0].grid))
    left = [point for point in points if state_of(point, folder).left is not Left.NOTHING]
    say(f"points: {len(points)} of config/{need.config}, {len(points) - len(left)} of them are in {folder.root}")
    if left and not only_records:
        _run(plan, left, folder)
    return _judged(value, folder.root, Path("no records"), started, here=True, points={point.id for point in points})


def _has_gpu(need: Need) -> bool:
    import torch

    return torch.cuda.device_count() >= (2 if need.kind == MANY else 1)


def _run(plan: Any, points: list[Point], folder: GridFolder) -> None:
    from blast.experiment.rerun import rerun

    if rerun(plan, [point.id for point in points], folder):
        raise BlastError(
            f"a point failed; the log is {folder.log('rerun')}: remove its cause and give the command again."
        )


def _judged(
    value: PaperValue, grid_dir: Path, recorded: Path, started: float, *, here: bool, points: set[str] | None = None
) -> Tried:
    from blast.experiment.analysis.claims import judge
    from blast.experiment.records.table import load_table

    table = load_table(grid_dir, recorded)
    if points is not None:
        # Only the points of the claim: others of the grid may not be run.
        parents = set(table[table["point"].isin(points)]["parent"])
        table = table[table["point"].isin(points | parents)]
    findings = [
        {"verdict": found.verdict, "ours": found.ours, "setting": found.setting} for found in judge(value, table)
    ]
    best = min((each["verdict"] for each in findings), key=ORDER.index)
    return Tried(best, findings, time.monotonic() - started, here)
