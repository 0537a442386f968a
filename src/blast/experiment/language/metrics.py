"""Language metrics in three steps: lm-eval builds requests, any machine scores them, lm-eval computes the metrics.

The third step uses lm-eval's own code and needs no model: `StoredScores` answers each request with its stored score.
The request file also holds the documents, so this step needs only the requests and the scores.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from blast.datasets._text.separate_test import documents_of_test
from blast.errors import BlastError
from blast.evaluation.item_scores import ItemScores
from blast.evaluation.metric import metric
from blast.evaluation.requests import SEPARATE_TEST, RequestFile, read_requests
from blast.evaluation.scores import ScoreFile, read_scores
from blast.evaluation.statistics import ratio_and_stderr
from blast.experiment.language.items import chance_of, item_scores
from blast.experiment.language.tasks_of_lm_eval import (
    check_answers,
    loaded_tasks,
    read_documents,
)
from blast.files import folder_digest

if TYPE_CHECKING:
    from blast.datasets._text.language_data import LanguageData

# Bootstrap draws for the few metrics without a closed form of the standard error; its own error is then about 2 %.
BOOTSTRAP = 1000
FEWSHOT_SEED = 1234
UNITS = {
    "bits_per_byte": "bits/byte",
    "byte_perplexity": "perplexity/byte",
    "word_perplexity": "perplexity/word",
    "perplexity": "perplexity",
}
# Metrics that are ratios of sums over documents. lm-eval gives no standard error for them.
SIZES = {"bits_per_byte": "bytes", "byte_perplexity": "bytes", "word_perplexity": "words"}


def build_requests(
    data_folder: Path,
    tasks: Sequence[str],
    tokenizer_dir: Path,
    out_file: Path,
    limit: int | None = None,
    separate_test_of: LanguageData | None = None,
) -> RequestFile:
    """Builds and tokenises the requests of some tasks with lm-eval. Writes them and their documents to one file.

    Args:
        data_folder: Folder of the document files that the tasks name as `@DATA@/<file>`.
        tasks: Names of tasks; the file keeps their order.
        tokenizer_dir: Folder of a transformers tokenizer.
        out_file: The request file to write (`.jsonl.gz`). The same inputs give the same bytes.
        limit: Use the first `limit` documents of each task; None for all.
        separate_test_of: The prepared dataset; what comes from its held-out documents of even number is left out. None
            keeps all.

    Raises:
        BlastError: if a task is unknown or asks for something else than likelihoods, or if a document file or the
            tokenizer is missing or damaged.
    """
    documents = read_documents(Path(data_folder), tasks)
    if separate_test_of is not None:
        documents = documents_of_test(documents, separate_test_of)
    tokenizer = _tokenizer(Path(tokenizer_dir))
    from blast.experiment.language.request_collector import RequestCollector

    collector = RequestCollector(tokenizer)
    try:
        with loaded_tasks(tasks, documents) as loaded:
            for name, task in loaded.items():
                task.set_fewshot_seed(seed=FEWSHOT_SEED)
                task.build_all_requests(limit=limit)
                collector.collect(name, task.instances)
                check_answers(name, task, limit)
    except BlastError:
        raise
    except Exception as error:  # lm-eval raises many types if a task and its documents do not fit.
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise BlastError(
            f"lm-eval cannot build the requests of {', '.join(tasks)} ({reason}); "
            f"correct the YAML or the documents: {', '.join(documents)}."
        ) from error
    settings = {
        "limit": limit,
        "fewshot_seed": FEWSHOT_SEED,
        "prefix_token": collector.prefix_token_id,
        "tokenizer": folder_digest(Path(tokenizer_dir)),
        "lm_eval": metadata.version("lm_eval"),
    }
    if separate_test_of is not None:
        settings[SEPARATE_TEST] = True
    built = RequestFile(list(tasks), collector.requests, documents, settings)
    built.write(Path(out_file))
    return built


class Evaluated(NamedTuple):
    """Metrics as entries of a record, and by task lm-eval's samples: each document with its answers and its scores."""

    metrics: list[dict[str, Any]]
    samples: dict[str, list[dict[str, Any]]]


class LmEvalMetrics:
    """A context in which lm-eval computes metrics from score files. It loads the tasks of one request file once.

    Args:
        requests_file: A file that `build_requests` wrote.

    Raises:
        BlastError: if the file is missing or damaged, or names an unknown task.
    """

    def __init__(self, requests_file: Path) -> None:
        self.requests = read_requests(requests_file)
        self._loading = loaded_tasks(self.requests.tasks, self.requests.documents)

    def __enter__(self) -> LmEvalMetrics:
        self._tasks = self._loading.__enter__()
        for task in self._tasks.values():
            _build_once(task)
        return self

    def __exit__(self, *error: Any) -> None:
        self._loading.__exit__(*error)

    def compute(self, scores_file: Path) -> list[dict[str, Any]]:
        """The metrics of all tasks as entries of a record; see `evaluate`, which also gives the items."""
        return self.evaluate(scores_file).metrics

    def evaluate(self, scores_file: Path, limit: int | None = None) -> Evaluated:
        """What lm-eval makes of the scores: metrics with standard errors and counts, and its samples.

        lm-eval gives no standard error for bits per byte and perplexities. Here it is that of a ratio estimate over
        documents (delta method, see `ratio_and_stderr`).

        Args:
            scores_file: The scores of all requests.
            limit: Use the first so many documents of each task; None for all that have requests.

        Raises:
            BlastError: if the scores are missing, damaged, not finite or of other requests, or if a task changed since
                the requests were built.
        """
        scores = read_scores(scores_file)
        scores.check_against(self.requests, str(scores_file))
        results = self._evaluate(scores, limit or self.requests.settings["limit"])
        metrics = [
            self._entry(results, scores, task, *key.split(","))
            for task in self.requests.tasks
            for key in results["results"][task]
            if "," in key and "_stderr," not in key
        ]
        return Evaluated(metrics, results["samples"])

    def items(self, evaluated: Evaluated) -> dict[str, ItemScores]:
        """By task, the scores of its items."""
        from blast.experiment.language.stored_scores import request_key

        tokens = {request.key: len(request.continuation) for request in self.requests}
        return {
            task: item_scores(self._tasks[task], samples, lambda kind, text: tokens[request_key(kind, text)])
            for task, samples in evaluated.samples.items()
        }

    def _evaluate(self, scores: ScoreFile, limit: int | None) -> dict[str, Any]:
        from lm_eval.evaluator import evaluate

        from blast.experiment.language.stored_scores import StoredScores

        # Each build advances the sampler of few-shot examples, so it is seeded again.
        for task in self._tasks.values():
            task.set_fewshot_seed(seed=FEWSHOT_SEED)
        by_key = {request.key: score for request, score in zip(self.requests, scores.scores, strict=True)}
        # Keeps the bootstrap from starting one process per core.
        os.environ.setdefault("DISABLE_MULTIPROC", "1")
        return evaluate(
            lm=StoredScores(by_key),
            task_dict={"tasks": self._tasks, "groups": {}, "group_map": {}},
            limit=limit,
            bootstrap_iters=BOOTSTRAP,
        )

    def _entry(self, results: dict[str, Any], scores: ScoreFile, task: str, name: str, kept: str) -> dict[str, Any]:
        found = results["results"][task]
        stderr = found[f"{name}_stderr,{kept}"]
        setting = {
            "num_fewshot": results["n-shot"][task] or 0,
            "task_version": results["versions"][task],
            "lm_eval": metadata.version("lm_eval"),
            "limit": self.requests.settings["limit"],
            **scores.settings,
        }
        if name in SIZES:
            pairs = [sample[name] for sample in results["samples"][task]]
            stderr = _stderr_over_documents(name, pairs)
            setting |= {"stderr": "delta method over documents", SIZES[name]: sum(size for _, size in pairs)}
        if kept != "none":
            setting["filter"] = kept
        chance = chance_of(self._tasks[task], [sample["doc"] for sample in results["samples"][task]])
        if name in chance:
            setting["chance"] = chance[name]
        return metric(
            name,
            found[f"{name},{kept}"],
            unit=UNITS.get(name, "fraction"),
            better="higher" if results["higher_is_better"][task][name] else "lower",
            n=results["n-samples"][task]["effective"],
            stderr=None if isinstance(stderr, str) else stderr,  # "N/A"
            task=task,
            setting=setting,
        )


def _build_once(task: Any) -> None:
    """Lets a task keep its requests: lm-eval builds them at each evaluation, which takes longer than all the rest."""
    build, kept = task.build_all_requests, {}

    def build_all_requests(*, limit: int | None = None, **options: Any) -> None:
        if limit not in kept:
            build(limit=limit, **options)
            kept[limit] = task._instances
        for instance in kept[limit]:
            instance.resps, instance.filtered_resps = [], {}
        task._instances = kept[limit]

    task.build_all_requests = build_all_requests


def _stderr_over_documents(name: str, pairs: list[tuple[float, int]]) -> float | None:
    """Standard error of a ratio of sums, from the log-likelihood (nats) and the bytes or words of each document."""
    nats_per_unit, stderr = ratio_and_stderr([-nats for nats, _ in pairs], [size for _, size in pairs])
    if stderr is None:
        return None
    # Bits are nats / ln 2. Perplexity is exp(nats), and so is its derivative.
    return stderr / math.log(2) if name == "bits_per_byte" else stderr * math.exp(nats_per_unit)


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise BlastError(
            f"{folder}: no tokenizer could be loaded from it ({reason}); prepare the dataset again."
        ) from error
