"""Evaluation tasks: one lm-eval YAML file each in `tasks/`, found by its name.

A task names its data files as `@DATA@/<file>` and sets `cache_dir: "@DATA@"`. While the task is loaded, `@DATA@` is
replaced by a temporary folder with the documents. To use a task of lm-eval itself, include it as `@LM_EVAL@/<file>`:
the prompts are then lm-eval's, and only the data come from here.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from blast.datasets._evaluation import sets
from blast.download.cache import cache_root
from blast.errors import BlastError, unknown_name

Documents = dict[str, list[dict[str, Any]]]


def task_names() -> list[str]:
    """Names of all tasks, sorted. A file that starts with `_` is no task; other files include it."""
    names = (file.name for file in _folder().iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml") and name[0] != "_")


def task_text(task: str) -> str:
    """The YAML of a task.

    Raises:
        BlastError: if no task has that name; the message suggests the nearest one.
    """
    if task not in task_names():
        raise unknown_name("evaluation task", task, task_names())
    return (_folder() / f"{task}.yaml").read_text()


def read_documents(folder: Path, tasks: Sequence[str]) -> Documents:
    """The documents that some tasks read, by file name.

    Args:
        folder: Folder of the dataset's files (JSON lines). Published evaluation sets that it lacks come from the cache
            and are fetched if needed.
        tasks: Names of tasks.

    Raises:
        BlastError: if no task is given or a task is unknown; if a file is missing, damaged or empty; if no source has
            an evaluation set.
    """
    if not tasks:
        raise BlastError(f"no evaluation task was given; give at least one of: {', '.join(task_names())}.")
    return {name: _read_lines(_place(Path(folder), name)) for task in tasks for name in _data_files(task)}


def sets_of(task: str) -> list[str]:
    """The published evaluation sets that a task reads."""
    return [name for file in _data_files(task) if (name := file.removesuffix(".jsonl")) in sets.BY_NAME]


def _place(folder: Path, file: str) -> Path:
    name = file.removesuffix(".jsonl")
    if (folder / file).exists() or name not in sets.BY_NAME:
        return folder / file
    return Path(sets.prepare(name, cache_root())["file"])


@contextmanager
def loaded_tasks(tasks: Sequence[str], documents: Documents) -> Iterator[dict[str, Any]]:
    """lm-eval's task objects by name, with these documents. They are valid inside the context only."""
    import datasets
    import lm_eval
    from lm_eval.tasks import TaskManager

    for task in tasks:
        task_text(task)
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory(prefix="blast-tasks-") as folder:
        for name, rows in documents.items():
            (Path(folder) / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        for file in _folder().iterdir():
            if file.is_file():
                text = file.read_text().replace("@DATA@", _in_quotes(folder))
                stock = str(Path(lm_eval.__file__).parent / "tasks")
                (Path(folder) / file.name).write_text(text.replace("@LM_EVAL@", _in_quotes(stock)))
        yield TaskManager(include_path=folder, include_defaults=False).load(list(tasks))["tasks"]


def write_tasks(folder: Path, documents: Documents) -> None:
    """Writes all tasks and their documents into a folder, for `lm_eval --include_path` and its like.

    Args:
        folder: An existing folder. The tasks name it by its absolute path.
        documents: As `read_documents` gives them.
    """
    import lm_eval

    place, stock = str(folder.resolve()), str(Path(lm_eval.__file__).parent / "tasks")
    for name, rows in documents.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    for file in _folder().iterdir():
        if file.is_file():
            text = file.read_text().replace("@DATA@", place).replace("@LM_EVAL@", stock)
            (folder / file.name).write_text(text)


def check_answers(name: str, task: Any, limit: int | None) -> None:
    """Checks that the choices of each multiple-choice question include its answer.

    lm-eval only warns, and counts a question without its answer as wrong.

    Raises:
        BlastError: with the number of the first document whose answer is none of its choices.
    """
    if task.OUTPUT_TYPE != "multiple_choice":
        return
    for number, doc in task.doc_iterator(limit=limit):
        choices = task.doc_to_choice(doc)
        gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
        golds = gold if isinstance(gold, list) else [gold]
        if not golds or not all(0 <= g < len(choices) if isinstance(g, int) else g in choices for g in golds):
            raise BlastError(
                f"the task '{name}' has a document (number {number}) whose answer {gold!r} is none of its "
                f"{len(choices)} choices; correct the document."
            )


def _in_quotes(path: str) -> str:
    """A path as it stands between the double quotes of YAML."""
    return json.dumps(path)[1:-1]


def _folder() -> Any:
    return resources.files("blast.experiment.language") / "tasks"


def _data_files(task: str) -> list[str]:
    text = re.sub(r"^\s*#.*$", "", task_text(task), flags=re.MULTILINE)
    if 'cache_dir: "@DATA@"' not in text:
        # Without this key, lm-eval copies the data into the user's cache at every load.
        raise BlastError(f'{task}.yaml: the key cache_dir is missing; add `cache_dir: "@DATA@"` to its dataset_kwargs.')
    return sorted(set(re.findall(r"@DATA@/([\w.-]+)", text)))


def _read_lines(file: Path) -> list[dict[str, Any]]:
    try:
        with open(file, encoding="utf-8") as lines:
            documents = [json.loads(line) for line in lines]
    except FileNotFoundError as error:
        raise BlastError(f"{file}: these evaluation documents do not exist; prepare the dataset again.") from error
    except ValueError as error:
        raise BlastError(f"{file}: damaged ({error}); delete it and prepare the dataset again.") from error
    if not documents:
        raise BlastError(f"{file}: it holds no document; prepare the dataset again with a larger held-out part.")
    return documents
