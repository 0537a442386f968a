"""Writes one record as one MLflow run: parameters, curves, final values, dataset, artifacts, tags."""

from __future__ import annotations

import datetime
import itertools
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blast.errors import BlastError
from blast.experiment.plan.paths import GridFolder
from blast.experiment.records.rows import record_rows, write_rows
from blast.experiment.run.step_file import read_lines
from blast.experiment.tracking import names
from blast.experiment.tracking.live_run import LIVE, known_steps, parameters_of
from blast.experiment.tracking.model_artifact import MODEL, save_model
from blast.experiment.tracking.streamed_metrics import begin_of, samples
from blast.files import write_json
from blast.untrusted import member

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

_BATCH = 900  # metrics in one request; MLflow accepts 1000


def _milliseconds(time_text: str | float | None) -> int | None:
    if time_text is None:
        return None
    if isinstance(time_text, int | float):
        return int(time_text * 1000)
    moment = datetime.datetime.fromisoformat(time_text)
    return int(moment.timestamp() * 1000)


def log_metrics(client: MlflowClient, run_id: str, metrics: list[Metric]) -> None:
    for first in range(0, len(metrics), _BATCH):
        client.log_batch(run_id, metrics=metrics[first : first + _BATCH])


def make_run(client: MlflowClient, experiment: str, record: dict[str, Any], parent: str | None = None) -> Run:
    """Makes the empty run of a record. It has the status RUNNING and counts as superseded until it is complete."""
    started = _milliseconds(record["run"].get("started")) or int(time.time() * 1000)
    tags = names.tags(record) | ({"mlflow.parentRunId": parent} if parent else {})
    return client.create_run(experiment, start_time=started, tags=tags, run_name=record["point"]["id"])


def complete_run(
    client: MlflowClient,
    run: Run,
    file: Path,
    record: dict[str, Any],
    folder: GridFolder,
    parent: str | None = None,
) -> list[str]:
    """Writes everything into a run. Done twice, or by two processes at once, it makes the same run.

    Args:
        client: Client of the store.
        run: The run of the record: empty, partly written, or streamed while the point trained.
        file: File of the record.
        record: The record.
        folder: Folder of the grid, which holds the log and the masks.
        parent: Id of the run of the grid.

    Returns:
        One sentence for each damaged artifact.
    """
    from mlflow.entities import Metric, RunTag

    result, run_id = record["result"], run.info.run_id
    finished = _milliseconds(record["run"].get("finished")) or run.info.start_time
    steps = itertools.chain(names.curves(result), names.times(record["run"]))
    known = known_steps(client, run)
    metrics = [Metric(key, value, finished, step) for key, step, value in steps if step not in known.get(key, ())]
    metrics += [Metric(key, value, finished, 0) for key, value in names.final_metrics(result).items()]
    if record["point"]["stage"] == "benchmark":
        columns = names.headlines(result.get("metrics", ()))
        metrics += [Metric(key, value, finished, 0) for key, value in columns.items()]
    if not known:
        metrics += told_samples(folder, record)
    _log_dataset(client, run_id, result.get("dataset"))
    with tempfile.TemporaryDirectory(prefix="blast-mlflow-") as gathered:
        faults = _gather_artifacts(Path(gathered), file, record, folder)
        there = [path.relative_to(gathered).as_posix() for path in Path(gathered).rglob("*") if path.is_file()]
        client.log_artifacts(run_id, gathered)
    note = {"mlflow.note.content": names.note(record, run.info.experiment_id, run_id, parent, there)}
    # A streamed run knows nothing yet of the record.
    tags = note | (names.tags(record) if LIVE in run.data.tags else {})
    # Each request costs as much as many numbers.
    params = parameters_of(record["point"])
    first, metrics = metrics[: _BATCH - 100], metrics[_BATCH - 100 :]
    client.log_batch(run_id, first, params[:100], [RunTag(key, value) for key, value in tags.items()])
    for start in range(100, len(params), 100):
        client.log_batch(run_id, params=params[start : start + 100])
    log_metrics(client, run_id, metrics)
    client.set_terminated(run_id, "FINISHED" if record["status"] == "ok" else "FAILED", finished)
    return faults


def told_samples(folder: GridFolder, record: dict[str, Any]) -> list[Metric]:
    """The system metrics of a training that nobody streamed, from what it told; none if that is of other settings."""
    with suppress(OSError):
        lines, _ = read_lines(folder.told(record["point"]["id"]))
        if lines and begin_of(lines[0]).get("digest") == record["point_digest"]:
            return samples(lines)
    return []


def _log_dataset(client: MlflowClient, run_id: str, dataset: dict[str, Any] | None) -> None:
    from mlflow.entities import Dataset, DatasetInput

    if dataset:
        short = dataset["digest"].removeprefix("sha256:")[:8]  # displayed beside the name; MLflow accepts 36 characters
        source = names.as_text({"dataset": dataset["name"]})
        entry = Dataset(dataset["name"], short, "blast", source, profile=names.as_text(dataset.get("counts", {})))
        client.log_inputs(run_id, datasets=[DatasetInput(entry)])


def _gather_artifacts(place: Path, file: Path, record: dict[str, Any], folder: GridFolder) -> list[str]:
    """Copies the artifacts of a run into `place`. Returns one sentence for each damaged one."""
    write_json(place / "point.json", record["point"])
    shutil.copyfile(file, place / "record.json")
    # A record that came from elsewhere may name any file of this machine as its log.
    with suppress(BlastError, OSError):
        shutil.copyfile(member(folder.root, record.get("log")), place / "log.txt")  # the UI shows no .log files
    if record["point"]["stage"] == "benchmark":
        write_rows(place / "rows.csv", record_rows(record))
    # A checkpoint or masks of elsewhere may be damaged: the other artifacts are written all the same.
    faults = []
    try:
        save_model(place / MODEL, record, folder)
    except BlastError as error:
        faults.append(str(error))
    masks = (record["result"].get("artifacts") or {}).get("masks")
    if masks:
        from blast.experiment.tracking.mask_images import draw_masks

        try:
            masks_file = member(folder.work(record["point"]["id"]), masks["path"])
            if masks_file.is_file():
                draw_masks(masks_file, place / "masks")
        except BlastError as error:
            faults.append(str(error))
    return faults


def add_language(client: MlflowClient, run_id: str, language: dict[str, Any], key: str) -> None:
    """Adds the metrics of lm-eval to a complete run. The digest is written last, so a killed import is repeated.

    Of two values for a step, MLflow shows the later one. So the time of a new value is that of the old one and 1 ms:
    two importers that write it at once write the same.
    """
    from mlflow.entities import Metric, RunTag

    run = client.get_run(run_id)
    new = []
    for name, value in names.metrics(language.get("metrics") or ()).items():
        if name not in run.data.metrics:
            new.append(Metric(name, value, run.info.end_time, 0))
        elif run.data.metrics[name] != value:
            last = max(entry.timestamp for entry in client.get_metric_history(run_id, name))
            new.append(Metric(name, value, last + 1, 0))
    log_metrics(client, run_id, new)
    client.log_dict(run_id, language, "language.json")
    found = {"language_status": language.get("status"), "language_cause": language.get("cause"), "language_digest": key}
    tags = [RunTag(name, names.as_text(value)) for name, value in found.items() if value is not None]
    client.log_batch(run_id, tags=tags)
