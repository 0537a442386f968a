"""The stage `language`: lm-eval's metrics of points, computed from their score files."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from blast.errors import BlastError
from blast.evaluation.item_scores import write_item_scores
from blast.experiment.language.metrics import LmEvalMetrics
from blast.experiment.plan.paths import GridFolder
from blast.experiment.records import provenance
from blast.experiment.records.fingerprint import language_fingerprint
from blast.experiment.records.language import language_digest
from blast.experiment.records.record import read_record
from blast.files import read_json, write_json

FORMAT = 1


def _left_out(folder: GridFolder, dataset: str) -> dict[str, str]:
    """By task: the reason why a dataset has no requests for it."""
    file = folder.left_out(dataset)
    return read_json(file, "list of tasks left out", "run again.") if file.is_file() else {}


def _write(folder: GridFolder, name: str, record: dict[str, Any], entry: dict[str, Any]) -> None:
    """Writes the metrics of a point, with what they were made of."""
    tasks = record["point"].get("evaluation", {}).get("tasks", [])
    metrics = {
        "format": FORMAT,
        "id": name,
        "record_digest": record["record_digest"],
        "fingerprint": language_fingerprint(tasks),
        "versions": provenance.versions(),
        **entry,
    }
    write_json(folder.language(name), metrics | {"digest": language_digest(metrics)})


def compute_language_metrics(folder: GridFolder, ids: Sequence[str]) -> None:
    """Writes `language/<id>.json` for each point, and the scores of single items beside it.

    The file of a point without scores gives the reason. A point without tasks has no metrics.

    The tasks of a dataset are loaded once for all its points.
    """
    loaded: dict[str, LmEvalMetrics] = {}
    with ExitStack() as contexts:
        for name in ids:
            record = read_record(folder.record(name))
            entry: dict[str, Any] = {"status": "ok", "cause": None, "metrics": []}
            try:
                if record["status"] != "ok":
                    raise BlastError(f"the point failed: {record['cause']}")
                dataset = record["point"]["dataset"]
                if record["point"].get("evaluation", {}).get("tasks") == []:
                    _write(folder, name, record, entry)
                    continue
                missing = _left_out(folder, dataset)
                if missing and not folder.requests(dataset).is_file():
                    raise BlastError("; ".join(missing.values()))
                if dataset not in loaded:
                    loaded[dataset] = contexts.enter_context(LmEvalMetrics(folder.requests(dataset)))
                evaluated = loaded[dataset].evaluate(folder.work(name) / "scores.json")
                entry["metrics"], entry["left_out"] = evaluated.metrics, missing
                facts = {"point": name, "record": record["record_digest"], "requests": loaded[dataset].requests.digest}
                write_item_scores(folder.item_scores(name), loaded[dataset].items(evaluated), facts)
            except BlastError as error:
                entry |= {"status": "failed", "cause": str(error)}
            except Exception as error:
                traceback.print_exc(file=sys.stderr)
                entry |= {"status": "failed", "cause": f"{type(error).__name__} in lm-eval: {error}"}
            _write(folder, name, record, entry)
