"""The experiments of a grid in MLflow: one for its trainings, one for its benchmarks, and a parent run in each."""

from __future__ import annotations

import json
import urllib.parse
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blast.errors import BlastError
from blast.experiment.tracking.one_run import COMPLETE, chosen, runs_of_point, undropped
from blast.experiment.tracking.store import artifact_location
from blast.experiment.tracking.store_errors import shown
from blast.experiment.tracking.view import VIEW_TAG, experiment_tags, view_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

# The tag of a parent run; its value is the name of the grid.
GRID_RUN = "grid_run"


def experiment_name(grid: str, stage: str) -> str:
    """Benchmarks have an experiment of their own, with columns of their own; no grid has a name with a space."""
    return f"{grid} benchmarks" if stage == "benchmark" else grid


@dataclass
class GridExperiment:
    """An experiment, made when it is first used. Any number of processes may do this at once.

    Args:
        client: Client of the store.
        uri: Address of the store.
        results: The folder of the grids, for the artifacts of a store without a server.
        grid: Name of the grid.
        stage: Of its points, `train` or `benchmark`.
    """

    client: MlflowClient
    uri: str
    results: Path
    grid: str
    stage: str

    @property
    def name(self) -> str:
        """Its name."""
        return experiment_name(self.grid, self.stage)

    @cached_property
    def _found(self) -> Experiment:
        from mlflow.exceptions import MlflowException

        location = artifact_location(self.uri, self.results, self.name)
        known = self.client.get_experiment_by_name(self.name)
        if known is None:
            if location:
                # Before anyone can see the experiment: importers elsewhere look for its folder.
                _local_folder(location).mkdir(parents=True, exist_ok=True)
            try:
                made = self.client.create_experiment(
                    self.name, artifact_location=location, tags=experiment_tags(self.grid, self.stage)
                )
                return self.client.get_experiment(made)
            except MlflowException:
                known = self.client.get_experiment_by_name(self.name)  # another machine created it first
                if known is None:
                    raise
        place = known.artifact_location
        if location and place.startswith("file:") and place != location and not _local_folder(place).is_dir():
            raise BlastError(
                f"{_local_folder(place)}: the database {shown(self.uri)} keeps the files of '{self.name}' in this "
                "folder, which this machine does not have; mount it here, or import through an MLflow server "
                "(MLFLOW_TRACKING_URI=http://…)."
            )
        if known.lifecycle_stage == "deleted":
            self.client.restore_experiment(known.experiment_id)
        return known

    @property
    def id(self) -> str:
        """Its id in the store."""
        return str(self._found.experiment_id)

    def leave_earlier(self, point: str) -> None:
        """Marks runs of a benchmark that an earlier version put among the trainings of the grid as superseded."""
        if self.stage == "benchmark" and self._trainings is not None:
            for run in runs_of_point(self.client, self._trainings, point):
                self.client.set_tag(run.info.run_id, "superseded", "true")

    @cached_property
    def _trainings(self) -> str | None:
        found = self.client.get_experiment_by_name(experiment_name(self.grid, "train"))
        return str(found.experiment_id) if found else None

    @cached_property
    def parent(self) -> Run:
        """The run that all runs of the grid are nested in, the same one for all importers."""
        query = f"tags.{GRID_RUN} = '{self.grid}'"

        def candidates() -> list[Run]:
            return undropped(self.client.search_runs([self.id], filter_string=query))

        run = chosen(self.client, candidates, self._make_parent, self.name)
        if run.info.status not in (*COMPLETE, "KILLED") and GRID_RUN + "_live" not in run.data.tags:
            self.client.set_terminated(run.info.run_id, "FINISHED")
        self._renew_view()
        return run

    def _make_parent(self) -> Run:
        tags = {GRID_RUN: self.grid, "superseded": "false", "mlflow.source.type": "LOCAL", "stage": self.stage}
        return self.client.create_run(self.id, tags=tags, run_name=f"grid {self.grid}")

    def _renew_view(self) -> None:
        """Lets the page open with the columns of today, also of an experiment that an earlier version made."""
        view = view_of(self.stage)
        try:
            state = json.loads(json.loads(self._found.tags[VIEW_TAG])["state"])
        except (LookupError, ValueError, TypeError):
            state = None
        if state != json.loads(json.loads(view)["state"]):
            self.client.set_experiment_tag(self.id, VIEW_TAG, view)


class Experiments:
    """The experiments of grids, each looked up once.

    Args:
        client: Client of the store.
        uri: Address of the store.
        results: The folder of the grids.
    """

    def __init__(self, client: MlflowClient, uri: str, results: Path) -> None:
        self._given = client, uri, results
        self._known: dict[tuple[str, str], GridExperiment] = {}

    def of(self, point: dict[str, Any]) -> GridExperiment:
        """The experiment of a point."""
        key = point["grid"], point["stage"]
        if key not in self._known:
            self._known[key] = GridExperiment(*self._given, *key)
        return self._known[key]

    def used(self) -> list[GridExperiment]:
        """Those that points were looked up for."""
        return list(self._known.values())


def _local_folder(address: str) -> Path:
    return Path(urllib.parse.unquote(urllib.parse.urlsplit(address).path))
