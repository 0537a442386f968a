"""Chooses the one run of a record, by the database alone: importers on several machines need no common lock.

A run of MLflow gets its id from the store, so two importers that come at once make two runs of a record: candidates.
A parameter of a run can be written once, and then never changes. So the parameter `IMPORT` of a candidate decides about
it, for all importers and for good: `kept` or `dropped`. An importer

1. lists the candidates; makes one if there is none, and lists again;
2. drops all but the first of them (by id);
3. keeps the first.

No two candidates are kept: whoever keeps one has dropped all others that it saw, and of two importers that each keep
another candidate, one listed later than the other candidate was made. Only the kept candidate is written to, and all
that is written is the same whoever writes it: if an importer is killed, the next one completes its run. A dropped
candidate is empty and stays empty; it is deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from blast.errors import BlastError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

IMPORT, KEPT, DROPPED = "blast_import", "kept", "dropped"
COMPLETE = ("FINISHED", "FAILED")
_ROUNDS = 50


def chosen(client: MlflowClient, candidates: Callable[[], list[Run]], make: Callable[[], object], what: str) -> Run:
    """The one run of several candidates, the same one for all importers; it may have to be completed.

    Args:
        client: Client of the store.
        candidates: Lists the candidates that were not dropped.
        make: Makes one if there is none.
        what: What the run is of, for the error.

    Raises:
        BlastError: if other importers come in between again and again.
    """
    for _ in range(_ROUNDS):
        found = candidates()
        if not found:
            make()
            continue
        first = min(found, key=_rank)
        # All others are decided about, before the first is.
        others = [_decide(client, run, DROPPED) for run in found if run is not first]
        if KEPT not in others and _decide(client, first, KEPT) == KEPT:
            return first
    raise BlastError(f"{what}: too many imports of this record run at once; import again when they are done.")


def one_run(client: MlflowClient, experiment: str, point: str, record_digest: str, make: Callable[[], object]) -> Run:
    """The run of a record: that of its training, if one was streamed, else one that `make` makes.

    Args:
        client: Client of the store.
        experiment: Id of the experiment.
        point: Id of the point.
        record_digest: Digest of the record.
        make: Makes a run with the tags `point_id` and `record_digest`, or gives a streamed one that tag.

    Raises:
        BlastError: as `chosen`.
    """

    def candidates() -> list[Run]:
        runs = runs_of_point(client, experiment, point)
        return [run for run in runs if run.data.tags.get("record_digest") == record_digest]

    return chosen(client, candidates, make, point)


def undropped(runs: Iterable[Run]) -> list[Run]:
    """Runs without those that were dropped."""
    return [run for run in runs if run.data.params.get(IMPORT) != DROPPED]


def runs_of_point(client: MlflowClient, experiment: str, point: str) -> list[Run]:
    """All runs of a point, whatever their record, but those that were dropped."""
    found, token = [], None
    while token is None or token:
        page = client.search_runs([experiment], filter_string=f"tags.point_id = '{point}'", page_token=token)
        found += page
        token = page.token or ""
    return undropped(found)


def make_current(client: MlflowClient, experiment: str, point: str, run_id: str) -> bool:
    """Makes a complete run the current one of its point, and all others superseded.

    If importers with different records of a point come at once, one of the runs is current in the end: whoever writes
    looks again after it has written.

    Returns:
        Whether a run of another record was superseded.
    """
    chosen, superseded = run_id, False
    for look in range(_ROUNDS):
        runs = [run for run in runs_of_point(client, experiment, point) if run.info.status in COMPLETE]
        current = [run.info.run_id for run in runs if run.data.tags.get("superseded") != "true"]
        if not runs or current == [run_id] or (look and len(current) == 1):
            break
        if chosen not in current:
            client.set_tag(chosen, "superseded", "false")
        for other in current:
            if other != chosen:
                client.set_tag(other, "superseded", "true")
                superseded = True
        # From the second look on, importers that disagree choose alike.
        chosen = max(runs, key=lambda run: (run.info.end_time or 0, run.info.run_id)).info.run_id
    return superseded


def _rank(run: Run) -> tuple[bool, bool, str]:
    """The order of candidates: kept ones, then complete ones, which earlier versions left undecided."""
    return run.data.params.get(IMPORT) != KEPT, run.info.status not in COMPLETE, run.info.run_id


def _decide(client: MlflowClient, run: Run, decision: str) -> str | None:
    """Decides about a candidate, if nobody has, and returns what is decided; None if it is gone."""
    from mlflow.exceptions import MlflowException

    run_id = run.info.run_id
    decided = run.data.params.get(IMPORT)
    if decided is None:
        try:
            client.log_param(run_id, IMPORT, decision)
            decided = decision
        except MlflowException as error:
            # Another importer was faster, or a person deleted the run.
            run = client.get_run(run_id)
            decided = run.data.params.get(IMPORT)
            if decided is None and run.info.lifecycle_stage == "active":
                raise error
    if decided == DROPPED:
        try:
            client.delete_run(run_id)
        except MlflowException:
            if client.get_run(run_id).info.lifecycle_stage == "active":
                raise
    return decided
