"""Imports records into MLflow. MLflow can be filled again from the records at any time, and never has duplicates.

    python -m blast.experiment.tracking.importer --grid-dir results/default [ID ...]

Each grid is an experiment, and each record is a run. The tag `record_digest` identifies the record of a run. The
metrics of lm-eval come later and are added to the same run; the tag `language_digest` identifies them. The run of the
record on disk is the current run of its point. All other runs of the point have `superseded = true`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blast.errors import BlastError
from blast.experiment.plan.paths import GridFolder
from blast.experiment.records.record import read_record
from blast.experiment.tracking.run import add_language, write_run
from blast.experiment.tracking.store import (
    artifact_location,
    database_file,
    import_lock,
    open_client,
    store_errors,
    tracking_uri,
)
from blast.experiment.tracking.view import experiment_tags
from blast.files import json_digest, read_json

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


@dataclass
class ImportSummary:
    """What an import did; the lists hold ids of points.

    Attributes:
        uri: Address of the store.
        added: Points whose record became a new run.
        amended: Points whose run got language metrics.
        unchanged: Points whose run was already complete.
        superseded: Points with an older run that is now marked as superseded.
        faults: One sentence for each damaged file; all other records were imported.
    """

    uri: str
    added: list[str] = field(default_factory=list)
    amended: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    superseded: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def line(self) -> str:
        """One line that says what the import did."""
        parts = [f"{len(self.added)} runs added"]
        for ids, words in ((self.amended, "given language metrics"), (self.superseded, "superseded")):
            parts += [f"{len(ids)} {words}"] if ids else []
        return f"MLflow: {', '.join(parts)}, {len(self.unchanged)} already there ({self.uri})"


def import_records(
    record_files: Iterable[Path], language_files: Iterable[Path], points_dir: Path, uri: str | None = None
) -> ImportSummary:
    """Imports records into MLflow. Complete runs stay as they are.

    Args:
        record_files: Records to import.
        language_files: Files `<id>.json` with the metrics of lm-eval; missing ones are ignored.
        points_dir: `results/<grid>/points`, with the masks and logs of the points.
        uri: Address of the store (default: `MLFLOW_TRACKING_URI`, else `results/mlflow/mlflow.db`).

    Raises:
        BlastError: if the store cannot be reached or used. The records are unchanged, and finished imports stay.
    """
    folder, results = GridFolder(Path(points_dir).parent), Path(points_dir).absolute().parents[1]
    uri = tracking_uri(results, uri)
    summary = ImportSummary(uri)
    records = list(_readable(record_files, summary))
    languages = {Path(file).stem: Path(file) for file in language_files}
    with import_lock(uri):
        client = open_client(uri)
        with store_errors(uri):
            experiments: dict[str, str] = {}
            for file, record in records:
                grid, name = record["point"]["grid"], record["point"]["id"]
                if grid not in experiments:
                    experiments[grid] = _experiment(client, grid, uri, results)
                language = _language_metrics(languages.get(name), record, summary)
                _import_one(client, experiments[grid], file, record, language, folder, summary)
    return summary


def _readable(files: Iterable[Path], summary: ImportSummary) -> Iterator[tuple[Path, dict[str, Any]]]:
    for file in files:
        try:
            yield Path(file), read_record(Path(file))
        except BlastError as error:
            summary.faults.append(str(error))


def _language_metrics(file: Path | None, record: dict[str, Any], summary: ImportSummary) -> dict[str, Any] | None:
    """The language metrics of a record; None if there are none yet or they belong to another record."""
    if file is None or not file.is_file():
        return None
    try:
        language = read_json(file, "language result", "run again: only the metrics are computed again.", ("status",))
    except BlastError as error:
        summary.faults.append(str(error))
        return None
    return language if language.get("record_digest") == record["record_digest"] else None


def _experiment(client: MlflowClient, name: str, uri: str, results: Path) -> str:
    """Id of the experiment of a grid; the experiment is created if it is missing."""
    from mlflow.exceptions import MlflowException

    location = artifact_location(uri, results, name)
    known = client.get_experiment_by_name(name)
    if known is None:
        try:
            return client.create_experiment(name, artifact_location=location, tags=experiment_tags(name))
        except MlflowException:
            known = client.get_experiment_by_name(name)  # another machine created it first
            if known is None:
                raise
    place, database = known.artifact_location, database_file(uri)
    if database and place.startswith("file:") and place != location:
        raise BlastError(
            f"{database.parent}: this folder was moved (its artifacts were in {place}); "
            "delete it and import again: MLflow is filled again from the records."
        )
    if known.lifecycle_stage == "deleted":
        client.restore_experiment(known.experiment_id)
    return known.experiment_id


def _import_one(
    client: MlflowClient,
    experiment: str,
    file: Path,
    record: dict[str, Any],
    language: dict[str, Any] | None,
    folder: GridFolder,
    summary: ImportSummary,
) -> None:
    name = record["point"]["id"]
    current, older = _runs_of(client, experiment, name, record["record_digest"])
    if current is None:
        run_id, faults = write_run(client, experiment, file, record, folder)
        summary.faults += faults
        summary.added.append(name)
    else:
        run_id = current.info.run_id
        if current.data.tags.get("superseded") == "true":
            client.set_tag(run_id, "superseded", "false")
    key = json_digest({part: language.get(part) for part in ("status", "cause", "metrics")}) if language else None
    amended = key is not None and (current is None or current.data.tags.get("language_digest") != key)
    if amended:
        add_language(client, run_id, language, key)
    if current is not None:
        (summary.amended if amended else summary.unchanged).append(name)
    outdated = [run for run in older if run.data.tags.get("superseded") != "true"]
    for run in outdated:
        client.set_tag(run.info.run_id, "superseded", "true")
    if outdated:
        summary.superseded.append(name)


def _runs_of(client: MlflowClient, experiment: str, name: str, record_digest: str) -> tuple[Run | None, list[Run]]:
    """The complete run of this record, or None, and the runs of other records of the same point."""
    current, older = None, []
    for run in client.search_runs([experiment], filter_string=f"tags.point_id = '{name}'"):
        if run.info.status == "RUNNING":
            client.delete_run(run.info.run_id)  # its import was killed
        elif run.data.tags.get("record_digest") == record_digest and current is None:
            current = run
        else:
            older.append(run)
    return current, older


def import_grid(grid_dir: Path, ids: Iterable[str] = (), uri: str | None = None) -> ImportSummary:
    """Imports the records of a grid folder: those with the given ids, else all.

    Raises:
        BlastError: as `import_records`.
    """
    folder = GridFolder(Path(grid_dir))
    ids = list(ids) or sorted(file.stem for file in (folder.root / "records").glob("*.json"))
    records, languages = [folder.record(name) for name in ids], [folder.language(name) for name in ids]
    return import_records(records, languages, folder.root / "points", uri)


def main(arguments: list[str] | None = None) -> int:
    """Imports a grid and prints one line. Returns 1 if a file was damaged or the store could not be used."""
    parser = argparse.ArgumentParser(
        prog="python -m blast.experiment.tracking.importer", description="Imports the records of a grid into MLflow."
    )
    parser.add_argument("--grid-dir", type=Path, required=True, help="folder of a grid, such as results/default")
    parser.add_argument("--tracking-uri", help="default: MLFLOW_TRACKING_URI, else results/mlflow/mlflow.db")
    parser.add_argument("ids", nargs="*", help="ids of points to import (default: all that have a record)")
    given = parser.parse_args(arguments)
    try:
        summary = import_grid(given.grid_dir, given.ids, given.tracking_uri)
    except BlastError as error:
        print(error, file=sys.stderr)
        return 1
    for fault in summary.faults:
        print(fault, file=sys.stderr)
    print(summary.line())
    return 1 if summary.faults else 0


if __name__ == "__main__":
    sys.exit(main())
