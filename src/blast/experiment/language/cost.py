"""What the evaluation of a grid costs, before it runs: tokens to read, and GPU-minutes at speeds that were measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from blast.evaluation.requests import RequestFile, read_requests
from blast.evaluation.scoring import read_tokens
from blast.experiment.plan.grid import Plan
from blast.experiment.plan.paths import GridFolder
from blast.experiment.records.rows import SCORING_RATE
from blast.experiment.records.table import load_table


def tokens_by_task(requests: RequestFile, window: int) -> dict[str, tuple[int, int]]:
    """By task: how many requests it has, and how many tokens a model reads to score them."""
    found = dict.fromkeys(requests.tasks, (0, 0))
    for request, tokens in zip(requests, read_tokens(requests, window), strict=True):
        count, total = found[request.task]
        found[request.task] = (count + 1, total + tokens)
    return found


def rates(table: pd.DataFrame, architecture: str) -> dict[str, tuple[float, int]]:
    """By machine: tokens a second that dense models of an architecture read, the median, and of how many runs."""
    rows = table[(table["metric"] == SCORING_RATE) & (table["model"] == architecture) & (table["method"] == "dense")]
    return {str(name): (float(group.median()), len(group)) for name, group in rows.groupby("hardware")["value"]}


def describe_cost(plan: Plan, folder: GridFolder, recorded: Path) -> Iterator[str]:
    """Lines about the evaluation through lm-eval: tokens of each task, and minutes of all models.

    Args:
        plan: The points.
        folder: Folder of the grid. A dataset whose requests are not built yet is named.
        recorded: `results/recorded`, for the speeds; a speed that no run has is named as not measured.
    """
    table = load_table(folder.root, recorded)
    for dataset in plan.datasets:
        points = [point for point in plan.points.values() if point.dataset == dataset and point.evaluation.get("tasks")]
        if not plan.tasks(dataset) or not points:
            continue
        if not folder.requests(dataset).is_file():
            yield f"evaluation on {dataset}: not known yet; build its requests first (`blast requests {dataset} …`)."
            continue
        requests = read_requests(folder.requests(dataset))
        for window in sorted({point.training["length"] for point in points}):
            known = tokens_by_task(requests, window)
            total = sum(tokens for _, tokens in known.values())
            yield f"evaluation on {dataset}, window {window}: {_millions(total)} tokens a model"
            for task, (count, tokens) in known.items():
                yield f"  {task:<20} {count:>7} requests {_millions(tokens):>9} tokens"
            models = [point.architecture for point in points if point.training["length"] == window]
            for architecture in dict.fromkeys(models):
                yield _minutes(architecture, models.count(architecture), total, rates(table, architecture))


def _minutes(architecture: str, models: int, tokens: int, speeds: dict[str, tuple[float, int]]) -> str:
    start = f"  {architecture}: {models} x {_millions(tokens)} tokens"
    if not speeds:
        return f"{start}: not measured here; run one dense model first, its record has the speed"
    costs = [
        f"{models * tokens / rate / 60:.1f} minutes on {name} ({tokens / rate / 60:.2f} a model, {rate:,.0f} tokens a "
        f"second in {runs} {'run' if runs == 1 else 'runs'})"
        for name, (rate, runs) in speeds.items()
    ]
    return f"{start}: {'; '.join(costs)}"


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M"
