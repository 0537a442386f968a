"""Runs points of a config again, apart from the grid: data, lm-eval requests, the points, and their metrics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from blast.errors import BlastError, unknown_name
from blast.evaluation.requests import SEPARATE_TEST
from blast.experiment.plan.grid import Plan
from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.run.job import run_points


def with_needs(plan: Plan, ids: Sequence[str]) -> list[Point]:
    """Points of a plan, and those whose checkpoints they need, these first.

    Raises:
        BlastError: if the plan has no point of an id.
    """
    found: dict[str, Point] = {}
    for name in ids:
        if name not in plan.points:
            raise unknown_name("point", name, plan.points)
        found |= {point.id: point for point in with_needs(plan, plan.points[name].needs)}
        found[name] = plan.points[name]
    return list(found.values())


def check_digest(point: Point, digest: str, config: Path) -> None:
    """Refuses a point whose settings are others than those of a record.

    Args:
        point: The point as the config gives it now.
        digest: Begin of the `point_digest` of its record.
        config: The file, for the error.

    Raises:
        BlastError: if the digests differ.
    """
    now = point.digest.removeprefix("sha256:")
    if not now.startswith(digest.removeprefix("sha256:")):
        raise BlastError(
            f"{config}: the point '{point.id}' has other settings now ({now[:12]} instead of {digest}); "
            "check out the commit that its record names, or leave out --digest."
        )


def rerun(plan: Plan, ids: Sequence[str], folder: GridFolder) -> int:
    """Runs points and those that they need. Points that `folder` has already are not repeated.

    Args:
        plan: The plan of their grid.
        ids: Their ids.
        folder: Where the records go.

    Returns:
        How many points failed.
    """
    points = with_needs(plan, ids)
    asked = [point for point in points if point.evaluation.get("tasks")]
    for dataset in dict.fromkeys(point.dataset for point in asked):
        if not folder.requests(dataset).is_file():
            _make_requests(plan, dataset, folder)
    failures = run_points(points, folder, folder.log("rerun"))
    if asked:
        from blast.experiment.language.stage import compute_language_metrics

        compute_language_metrics(folder, [point.id for point in asked])
    return failures


def _make_requests(plan: Plan, dataset: str, folder: GridFolder) -> None:
    """Fetches and prepares a dataset, and lets lm-eval build its requests."""
    from blast.experiment.data.prepare import build_dataset_requests, fetch_dataset, prepare_dataset

    fetched = folder.fetched(dataset)
    fetch_dataset(dataset, fetched)
    prepare_dataset(dataset, plan.data_settings(dataset), fetched, folder.data(dataset))
    asked = plan.evaluation(dataset)
    build_dataset_requests(dataset, plan.tasks(dataset), folder, asked.get("items"), bool(asked.get(SEPARATE_TEST)))
