"""`blast eval`: scores of a model on tasks of lm-eval."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blast.errors import BlastError, unknown_name
from blast.evaluation.scoring import max_length_of, score_requests
from blast.experiment.language.metrics import LmEvalMetrics, build_requests
from blast.experiment.language.tasks_of_lm_eval import sets_of, task_names
from blast.experiment.own_model.memory import check_memory, free_bytes
from blast.experiment.own_model.opening import ModelSource, find_model, load_tokenizer
from blast.files import write_json

LONGEST = 2048


@dataclass(frozen=True)
class EvalOptions:
    """What the user asked for.

    Attributes:
        model: See `find_model`.
        tasks: Names of tasks: the suite's own, which need no network once their questions are cached, or lm-eval's.
        limit: The first so many questions of each task; None for all.
        batch: Questions at once.
        json: File for the scores; None for none.
    """

    model: str
    tasks: tuple[str, ...]
    limit: int | None = None
    batch: int = 8
    json: Path | None = None


def evaluate(options: EvalOptions, say: Callable[[str], Any] = print) -> list[dict[str, Any]]:
    """Scores a model on tasks, prints a table, and returns its rows (`task`, `metric`, `value`, `stderr`, `n`, …).

    Raises:
        BlastError: if there is no such model or task, or the questions of a task cannot be fetched.
    """
    import torch

    from blast.experiment.own_model.finish import fuse_if_possible

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source = find_model(options.model, say)
    ours = [task for task in options.tasks if task in task_names()]
    for task in ours:
        if not sets_of(task):
            raise BlastError(
                f"the task '{task}' asks about a dataset that a grid prepares; take one of: {', '.join(own_tasks())}."
            )
    others = [task for task in options.tasks if task not in ours]
    _check_known(others)
    check_memory(f"running {source.name}", 6 * source.parameters, free_bytes(device), "choose a smaller model")
    load_tokenizer(source)
    model = fuse_if_possible(source.load().to(device)).eval()
    rows = _own(source, model, ours, options) if ours else []
    rows += _stock(source, model, others, options) if others else []
    for line in describe(rows):
        say(line)
    if options.json:
        write_json(options.json, {"model": source.name, "limit": options.limit, "scores": rows})
        say(f"written: {options.json}")
    return rows


def own_tasks() -> list[str]:
    """The suite's tasks that ask published questions, sorted."""
    return [task for task in task_names() if sets_of(task)]


def _check_known(tasks: Sequence[str]) -> None:
    """Refuses tasks that neither the suite nor lm-eval has."""
    if not tasks:
        return
    from lm_eval.tasks import TaskManager

    known = TaskManager().all_tasks
    for task in tasks:
        if task not in known:
            raise unknown_name("task", task, own_tasks())


def _own(source: ModelSource, model: Any, tasks: Sequence[str], options: EvalOptions) -> list[dict[str, Any]]:
    """Scores on tasks of the suite: lm-eval builds the requests and the metrics, and the suite's loop scores them."""
    with tempfile.TemporaryDirectory(prefix="blast-eval-") as folder:
        requests, scores = Path(folder) / "requests.jsonl.gz", Path(folder) / "scores.json"
        # Its documents come from the cache: the folder holds none.
        built = build_requests(Path(folder), tasks, source.tokenizer, requests, options.limit)
        window = min(LONGEST, max_length_of(model))
        score_requests(model, built, scores, batch_size=options.batch, max_length=window)
        with LmEvalMetrics(requests) as lm_eval:
            metrics = lm_eval.compute(scores)
    return [_row(entry) for entry in metrics]


def _row(entry: Mapping[str, Any]) -> dict[str, Any]:
    stderr = None if entry["high"] is None else entry["high"] - entry["value"]
    return {
        "task": entry["task"],
        "metric": entry["metric"],
        "value": entry["value"],
        "stderr": stderr,
        "n": entry["n"],
        "chance": entry["setting"].get("chance"),
    }


def _stock(source: ModelSource, model: Any, tasks: Sequence[str], options: EvalOptions) -> list[dict[str, Any]]:
    """Scores on lm-eval's own tasks, by lm-eval alone."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    try:
        language_model = HFLM(pretrained=model, tokenizer=load_tokenizer(source), batch_size=options.batch)
        found = simple_evaluate(model=language_model, tasks=list(tasks), limit=options.limit)
    except Exception as error:  # lm-eval and the hub's clients raise many types
        reason = (str(error).splitlines() or [""])[0]
        raise BlastError(
            f"lm-eval cannot run {', '.join(tasks)} ({type(error).__name__}: {reason}); its own tasks need "
            f"the network: take one of {', '.join(own_tasks())}."
        ) from error
    rows = []
    for task, values in found["results"].items():
        for key, value in values.items():
            name, _, kept = key.partition(",")
            if not kept or name.endswith("_stderr") or not isinstance(value, float | int):
                continue
            stderr = values.get(f"{name}_stderr,{kept}")
            count = found.get("n-samples", {}).get(task, {}).get("effective")
            rows.append(
                {
                    "task": task, "metric": name, "value": value, "n": count, "chance": None,
                    "stderr": stderr if isinstance(stderr, float) else None,
                }
            )  # fmt: skip
    return rows


def describe(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The scores as lines of text."""
    for row in rows:
        error = "" if row["stderr"] is None else f" +- {row['stderr']:.3f}"
        chance = "" if row["chance"] is None else f", chance {row['chance']:.3f}"
        # A score within two standard errors of chance says nothing about the model.
        known = row["chance"] is not None and row["stderr"] is not None
        near = known and row["value"] - row["chance"] < 2 * row["stderr"]
        yield (
            f"{row['task']:<16} {row['metric']:<16} {row['value']:>8.3f}{error}   {row['n']} questions{chance}"
            f"{': at chance' if near else ''}"
        )
