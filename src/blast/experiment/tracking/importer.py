"""Imports records into MLflow. MLflow can be filled again from the records at any time, and never has duplicates.

    python -m blast.experiment.tracking.importer --grid-dir results/default [ID ...]

Any number of importers may run at once, on any machines: the module `one_run` says why nothing is lost or doubled.

Each grid is an experiment, with a second one for its benchmarks. Each record is a run, nested in the run of its grid.
The tag `record_digest` identifies the record of a run. The metrics of lm-eval come later and are added to the same run;
the tag `language_digest` identifies them. The run of the record on disk is the current run of its point. All other runs
of the point have `superseded = true`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blast.errors import BlastError
from blast.experiment.command_end import ended
from blast.experiment.plan.paths import GridFolder
from blast.experiment.records.record import read_record
from blast.experiment.tracking.experiments import Experiments, GridExperiment
from blast.experiment.tracking.grid_run import complete_grid_run
from blast.experiment.tracking.live_run import adopt
from blast.experiment.tracking.names import NESTED
from blast.experiment.tracking.one_run import COMPLETE, make_current, one_run
from blast.experiment.tracking.run import add_language, complete_run, make_run
from blast.experiment.tracking.store import open_client, tracking_uri
from blast.experiment.tracking.store_errors import shown, store_errors
from blast.files import json_digest, read_json

if TYPE_CHECKING:
    from mlflow import MlflowClient

_GRACE = 1.0  # s, for the last runs of other importers; what they have not completed then is completed twice


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
        return f"MLflow: {', '.join(parts)}, {len(self.unchanged)} already there ({shown(self.uri)})"


def import_records(
    record_files: Iterable[Path],
    language_files: Iterable[Path],
    points_dir: Path,
    uri: str | None = None,
    whole: bool = False,
) -> ImportSummary:
    """Imports records into MLflow. Complete runs stay as they are.

    Args:
        record_files: Records to import.
        language_files: Files `<id>.json` with the metrics of lm-eval; missing ones are ignored.
        points_dir: `results/<grid>/points`, with the masks and logs of the points.
        uri: Address of the store (default: `MLFLOW_TRACKING_URI`, else `results/mlflow/mlflow.db`).
        whole: Whether these are all records of the grid, so that its own run gets its figures, tables and verdict too.

    Raises:
        BlastError: if the store cannot be reached or used. The records are unchanged, and finished imports stay.
    """
    folder, results = GridFolder(Path(points_dir).parent), Path(points_dir).absolute().parents[1]
    uri = tracking_uri(results, uri)
    summary = ImportSummary(uri)
    records = list(_readable(record_files, summary))
    languages = {Path(file).stem: Path(file) for file in language_files}
    client = open_client(uri)
    with store_errors(uri):
        experiments = Experiments(client, uri, results)
        left = []
        for file, record in records:
            language = _language_metrics(languages.get(record["point"]["id"]), record, summary)
            given = (client, experiments.of(record["point"]), file, record, language, folder, summary)
            if not _import_one(*given):
                left.append(given)
        # Another importer makes these, or it was killed while it did.
        if left:
            time.sleep(_GRACE)
        for given in left:
            _import_one(*given, of_others=True)
        if whole:
            for experiment in experiments.used():
                complete_grid_run(client, experiment, folder)
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


def _import_one(
    client: MlflowClient,
    experiment: GridExperiment,
    file: Path,
    record: dict[str, Any],
    language: dict[str, Any] | None,
    folder: GridFolder,
    summary: ImportSummary,
    *,
    of_others: bool = False,
) -> bool:
    """Imports one record; False if another importer has begun its run, and `of_others` does not say to complete it."""
    name, parent = record["point"]["id"], experiment.parent.info.run_id
    mine: list[str] = []

    def make() -> None:
        experiment.leave_earlier(name)
        mine.append(adopt(client, experiment.id, record) or make_run(client, experiment.id, record, parent).info.run_id)

    run = one_run(client, experiment.id, name, record["record_digest"], make)
    run_id, complete = run.info.run_id, run.info.status in COMPLETE
    if not complete and not of_others and run_id not in mine:
        return False
    if run.data.tags.get("mlflow.parentRunId") != parent:
        # An earlier version made this run.
        for key, value in {"mlflow.parentRunId": parent, **NESTED}.items():
            client.set_tag(run_id, key, value)
    if not complete:
        summary.faults += complete_run(client, run, file, record, folder, parent)
        summary.added.append(name)
    key = json_digest({part: language.get(part) for part in ("status", "cause", "metrics")}) if language else None
    amended = key is not None and run.data.tags.get("language_digest") != key
    if amended:
        add_language(client, run_id, language, key)
    if complete:
        (summary.amended if amended else summary.unchanged).append(name)
    if make_current(client, experiment.id, name, run_id):
        summary.superseded.append(name)
    return True


def import_grid(grid_dir: Path, ids: Iterable[str] = (), uri: str | None = None) -> ImportSummary:
    """Imports the records of a grid folder: those with the given ids, else all.

    Raises:
        BlastError: as `import_records`.
    """
    folder, ids = GridFolder(Path(grid_dir)), list(ids)
    whole = not ids
    ids = ids or sorted(file.stem for file in (folder.root / "records").glob("*.json"))
    records, languages = [folder.record(name) for name in ids], [folder.language(name) for name in ids]
    return import_records(records, languages, folder.root / "points", uri, whole)


def main(arguments: list[str] | None = None) -> int:
    """Imports a grid and prints one line. Returns 1 if a file was damaged or the store could not be used."""
    parser = argparse.ArgumentParser(
        prog="python -m blast.experiment.tracking.importer", description="Imports the records of a grid into MLflow."
    )
    parser.add_argument("--grid-dir", type=Path, required=True, help="folder of a grid, such as results/default")
    parser.add_argument("--tracking-uri", help="default: MLFLOW_TRACKING_URI, else results/mlflow/mlflow.db")
    parser.add_argument("ids", nargs="*", help="ids of points to import (default: all that have a record)")
    return ended("blast", lambda: _import(parser.parse_args(arguments)), code=1)


def _import(given: argparse.Namespace) -> int:
    summary = import_grid(given.grid_dir, given.ids, given.tracking_uri)
    for fault in summary.faults:
        print(fault, file=sys.stderr)
    print(summary.line())
    return 1 if summary.faults else 0


if __name__ == "__main__":
    sys.exit(main())
