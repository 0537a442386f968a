"""The data stages of the workflow: fetch, prepare, requests. Each writes a file with facts or the cause of failure."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from blast import datasets
from blast.download.cache import cache_root, is_whole
from blast.errors import BlastError
from blast.experiment.plan.paths import GridFolder
from blast.files import read_json, write_json
from blast.settings import Place


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _facts_or_cause(work: Callable[[], dict[str, Any]], out: Path, **more: Any) -> None:
    try:
        values = {"status": "ok", "cause": None, "facts": work()}
    except BlastError as error:
        _say(f"blast: {error}")
        values = {"status": "failed", "cause": str(error), "facts": {}}
    write_json(out, values | more)


def fetch_dataset(dataset: str, out: Path) -> None:
    """Downloads the raw files of a dataset into the cache; writes facts or the cause of failure to `out`."""
    module = datasets.get(dataset)
    _say(f"{dataset}: licence {module.LICENCE}")
    _facts_or_cause(lambda: {**module.fetch(cache_root(), _say), "licence": module.LICENCE}, out)


def prepare_dataset(dataset: str, settings: dict[str, Any], fetched: Path | None, out: Path) -> None:
    """Prepares a dataset in the cache; writes facts or the cause of failure to `out`.

    Args:
        dataset: Its name.
        settings: Settings of the preparation.
        fetched: What `fetch_dataset` wrote; if fetching failed, its cause is passed on.
        out: File to write.

    Raises:
        BlastError: for an unknown dataset or setting, or if `out` cannot be written.
    """
    datasets.check_settings(dataset, settings, Place("data setting"))

    def work() -> dict[str, Any]:
        if fetched:
            before = read_json(fetched, "dataset file", "run again.", ("status", "cause"))
            if before["status"] != "ok":
                raise BlastError(before["cause"])
        return datasets.get(dataset).prepare(cache_root(), settings)

    _facts_or_cause(work, out, settings=settings)


def _whole(dataset: str, facts: dict[str, Any]) -> dict[str, Any]:
    """The facts of a prepared dataset, which is made again if it was damaged since.

    Raises:
        BlastError: if it cannot be made again, or has become another one.
    """
    if "settings" not in facts or is_whole(Path(facts["folder"])):
        return facts
    module = datasets.get(dataset)
    module.fetch(cache_root(), _say)
    made = module.prepare(cache_root(), facts["settings"])
    if made["digest"] != facts["digest"]:
        raise BlastError(
            f"{facts['folder']}: this prepared dataset was damaged, and what its sources give now is another one; "
            f"remove data/{dataset}.json from the folder of the grid and run again: its points are redone."
        )
    return made


def build_dataset_requests(
    dataset: str,
    tasks: Sequence[str],
    folder: GridFolder,
    items: int | None = None,
    separate_test: bool = False,
) -> dict[str, str]:
    """Lets lm-eval build the requests of a dataset; does nothing if the dataset failed.

    A task whose evaluation set cannot be fetched is left out. The reason is written beside the requests, and the other
    tasks are still evaluated.

    Args:
        dataset: Its name.
        tasks: Names of tasks.
        folder: Folder of the grid.
        items: At most so many items a task, the first ones; None for all.
        separate_test: Leave out what comes from held-out documents of even number, which are there to select by.

    Returns:
        Why tasks were left out, by task.
    """
    from blast.datasets._evaluation import sets
    from blast.datasets._text.prepare import open_text
    from blast.experiment.language.metrics import build_requests
    from blast.experiment.language.tasks_of_lm_eval import sets_of

    values = read_json(folder.data(dataset), "dataset file", "run again.", ("status", "facts"))
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
        facts = _whole(dataset, values["facts"])
        build_requests(
            Path(facts["folder"]),
            kept,
            Path(facts["tokenizer_dir"]),
            folder.requests(dataset),
            limit=items,
            separate_test_of=open_text(facts) if separate_test else None,
        )
    return left_out
