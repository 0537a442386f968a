"""What the files of a grid show as done, besides the records of points: data, requests, imports.

All is compared by content: results that were copied, with other times, are as done as before.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from blast.experiment.plan.grid import Plan
from blast.experiment.plan.paths import GridFolder
from blast.experiment.records.fingerprint import language_fingerprint
from blast.experiment.records.language import language_metrics, read_made
from blast.experiment.tracking.store_errors import shown
from blast.files import json_digest, locked

Record = dict[str, Any]
DATABASE = "sqlite:///"


def is_prepared(dataset: str, plan: Plan, folder: GridFolder) -> bool:
    """Whether the facts of a dataset are there, and of its settings; older ones do not tell theirs."""
    facts = read_made(folder.data(dataset))
    return facts.get("status") == "ok" and facts.get("settings") == plan.data_settings(dataset)


def requests_key(dataset: str, plan: Plan) -> str:
    """Digest of what decides the requests of lm-eval for a dataset."""
    tasks = plan.tasks(dataset)
    asked = [tasks, plan.items(dataset), plan.data_settings(dataset), language_fingerprint(tasks)]
    return json_digest(asked)


def has_requests(dataset: str, plan: Plan, folder: GridFolder) -> bool:
    """Whether the requests of lm-eval for a dataset are there, and of what is asked now."""
    try:
        made_of = folder.requests_key(dataset).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return False
    there = folder.requests(dataset).is_file() or set(read_made(folder.left_out(dataset))) >= set(plan.tasks(dataset))
    return there and made_of == requests_key(dataset, plan)


def _import_key(record_digest: str, metrics: dict[str, Any]) -> str:
    shown = {part: metrics.get(part) for part in ("status", "cause", "metrics")} if metrics else None
    return json_digest([record_digest, shown])


def tracking_store() -> str:
    """The address of MLflow's store as the user gave it, without its password, else the folder of the database."""
    return shown(os.environ.get("MLFLOW_TRACKING_URI") or "results/mlflow")


class Imports:
    """The points of a grid that MLflow has, by what they were when they were imported: `imports.jsonl`.

    Args:
        folder: Folder of the grid.
        store: As `tracking_store` gives it.
    """

    def __init__(self, folder: GridFolder, store: str) -> None:
        self.folder, self.store = folder, store
        self._known: set[tuple[str, str]] = set()
        if self._is_gone():
            return
        try:
            lines = folder.imports.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            lines = []
        for line in lines:
            try:
                entry = json.loads(line)
                if entry["store"] == store:
                    self._known.add((entry["id"], entry["key"]))
            except (ValueError, LookupError, TypeError):
                continue  # a line of a process that was killed; the point is imported once more

    def _is_gone(self) -> bool:
        """Whether the store is a database on this machine that is not there."""
        file = Path(self.store) / "mlflow.db" if "://" not in self.store else None
        if self.store.startswith(DATABASE):
            file = Path(self.store.removeprefix(DATABASE).split("?")[0])
        return file is not None and not file.is_file()

    def has(self, record: Record) -> bool:
        """Whether a record was imported with the language metrics that it has now."""
        name = record["point"]["id"]
        return (name, _import_key(record["record_digest"], language_metrics(name, self.folder))) in self._known

    def add(self, records: Iterable[Record]) -> None:
        """Notes that records were imported."""
        lines = []
        for record in records:
            name = record["point"]["id"]
            key = _import_key(record["record_digest"], language_metrics(name, self.folder))
            lines.append(json.dumps({"store": self.store, "id": name, "key": key}) + "\n")
        with locked(self.folder.imports), self.folder.imports.open("a", encoding="utf-8") as stream:
            # Begins a line, whatever a process that was killed left of the last one.
            stream.write("\n" + "".join(lines))
