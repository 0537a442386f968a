"""The data stages of the workflow: each leaves a file with facts, or with why there are none."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from blast import datasets
from blast.download.cache import cache_root
from blast.errors import BlastError
from blast.experiment.plan.paths import GridFolder
from blast.files import read_json, write_json


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _facts_or_cause(work: Callable[[], dict[str, Any]], out: Path) -> None:
    try:
        values = {"status": "ok", "cause": None, "facts": work()}
    except BlastError as error:
        _say(f"blast: {error}")
        values = {"status": "failed", "cause": str(error), "facts": {}}
    write_json(out, values)


def fetch_dataset(dataset: str, out: Path) -> None:
    """Brings the raw files of a dataset into the cache; `out` takes the facts or the cause of failure."""
    module = datasets.get(dataset)
    _say(f"{dataset}: licence {module.LICENCE}")
    _facts_or_cause(lambda: {**module.fetch(cache_root(), _say), "licence": module.LICENCE}, out)


def prepare_dataset(dataset: str, settings: dict[str, Any], fetched: Path | None, out: Path) -> None:
    """Prepares a dataset in the cache; `out` takes the facts, or the cause of failure, of fetching too."""

    def work() -> dict[str, Any]:
        if fetched:
            before = read_json(fetched, "dataset file", "delete it and run again.")
            if before["status"] != "ok":
                raise BlastError(before["cause"])
        return datasets.get(dataset).prepare(cache_root(), settings)

    _facts_or_cause(work, out)


def build_dataset_requests(
    dataset: str, tasks: Sequence[str], folder: GridFolder, items: int | None = None
) -> dict[str, str]:
    """Lets lm-eval build the requests of a dataset; without the dataset there are none to build.

    A task whose evaluation set no source has is left out, and the reason kept beside the requests: the metrics of the
    other tasks are made all the same.

    Args:
        dataset: Its name.
        tasks: Names of tasks.
        folder: Folder of the grid.
        items: At most so many items a task, the first ones; None for all.

    Returns:
        Why tasks were left out, by task.
    """
    from blast.datasets._evaluation import sets
    from blast.experiment.language.metrics import build_requests
    from blast.experiment.language.tasks_of_lm_eval import sets_of

    values = read_json(folder.data(dataset), "dataset file", "delete it and run again.")
    if values["status"] != "ok":
        return {}
    left_out: dict[str, str] = {}
    for task in tasks:
        try:
            for name in sets_of(task):
                sets.prepare(name, cache_root(), _say)
        except BlastError as error:
            _say(f"blast: {error}")
            left_out[task] = str(error)
    write_json(folder.left_out(dataset), left_out)
    kept = [task for task in tasks if task not in left_out]
    if kept:
        facts = values["facts"]
        build_requests(Path(facts["folder"]), kept, Path(facts["tokenizer_dir"]), folder.requests(dataset), limit=items)
    return left_out
