"""A run that is streamed while its point trains, and how the import of the record makes it its own.

The streamed run of a point has the tag `live` and the status RUNNING. An importer that finds one for its record writes
the parameter `blast_record`, the digest of the record. A parameter can be written once: of two importers with
different records one gets the run, and the other makes a new one. Then the run gets the tag `record_digest` and is a
candidate as any other (`one_run`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blast.experiment.plan.point import Point
from blast.experiment.tracking import names
from blast.experiment.tracking.one_run import COMPLETE, runs_of_point

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Param, Run

LIVE, RECORD = "live", "blast_record"


def adopt(client: MlflowClient, experiment: str, record: dict[str, Any]) -> str | None:
    """Makes the streamed run of a point the run of its record, and returns its id; None if there is none.

    Only a run of the same settings, streamed from the machine of the record, is taken.
    """
    from mlflow.exceptions import MlflowException

    point, digest = record["point"]["id"], record["record_digest"]
    for run in streamed(client, experiment, point, record["point_digest"], record["run"].get("host")):
        if run.data.params.get(RECORD, digest) != digest:
            continue
        try:
            client.log_param(run.info.run_id, RECORD, digest)
        except MlflowException:
            if client.get_run(run.info.run_id).data.params.get(RECORD) != digest:
                continue  # it has become that of another record, or a person deleted it
        client.set_tag(run.info.run_id, "record_digest", digest)
        return str(run.info.run_id)
    return None


def streamed(client: MlflowClient, experiment: str, point: str, digest: str, host: str | None) -> list[Run]:
    """The streamed runs of a point that no record has completed yet, by id.

    Args:
        client: Client of the store.
        experiment: Id of the experiment.
        point: Id of the point.
        digest: Digest of its settings.
        host: The machine that trains it.
    """
    found = []
    for run in runs_of_point(client, experiment, point):
        tags = run.data.tags
        same = tags.get(LIVE) == host and tags.get("point_digest") == digest
        if host and same and run.info.status not in COMPLETE:
            found.append(run)
    return sorted(found, key=lambda run: run.info.run_id)


def known_steps(client: MlflowClient, run: Run) -> dict[str, set[int]]:
    """By curve, the steps that a streamed run has; empty for a run that was not streamed."""
    if LIVE not in run.data.tags:
        return {}
    run_id = run.info.run_id
    names = [name for name in client.get_run(run_id).data.metrics if name.startswith("curves/")]
    return {name: {entry.step for entry in client.get_metric_history(run_id, name)} for name in names}


def make_live_run(
    client: MlflowClient, experiment: str, point: Point, begin: dict[str, Any], parent: str, tags: dict[str, str]
) -> str:
    """Makes the run of a point that trains now, and returns its id.

    Args:
        client: Client of the store.
        experiment: Id of the experiment.
        point: The point.
        begin: What the training told first.
        parent: Id of the run of its grid.
        tags: More tags.
    """
    settings, host = point.to_dict(), str(begin.get("host"))
    found = names.point_tags(settings, point.digest) | {
        LIVE: host,
        "host": host,
        "status": "running",
        "superseded": "false",
        "mlflow.parentRunId": parent,
        "mlflow.note.content": f"Trains on {host}, process {begin.get('pid')}.",
    }
    started = int(float(begin.get("time") or 0) * 1000) or None
    run = client.create_run(experiment, start_time=started, tags=names.texts(found | tags), run_name=point.id)
    parameters = parameters_of(settings)
    for first in range(0, len(parameters), 100):
        client.log_batch(run.info.run_id, params=parameters[first : first + 100])
    return str(run.info.run_id)


def parameters_of(point: dict[str, Any]) -> list[Param]:
    """The settings of a point as parameters of its run."""
    from mlflow.entities import Param

    return [Param(key, value) for key, value in names.parameters(point).items()]
