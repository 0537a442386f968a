"""Which points MLflow has, as noted in the folder of a grid: so a plan asks no store."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from blast.experiment.plan.paths import GridFolder, names_in
from blast.experiment.records.language import language_metrics
from blast.experiment.tracking.store_errors import shown
from blast.files import json_digest, locked

Record = dict[str, Any]
DATABASE = "sqlite:///"


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
        # Most points have none, and to ask for thousands of files takes long.
        self._metrics = frozenset(names_in(folder.language("any").parent))
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

    def has(self, name: str, record_digest: str) -> bool:
        """Whether a record was imported with the language metrics that were there when this was made.

        Args:
            name: Id of its point.
            record_digest: Its digest.
        """
        metrics = language_metrics(name, self.folder) if self.folder.language(name).name in self._metrics else {}
        return (name, _import_key(record_digest, metrics)) in self._known

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
