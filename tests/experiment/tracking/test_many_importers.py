"""Importers on several machines, without a common lock, lose no run and double none: sqlite and a real PostgreSQL."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faults
import postgresql_server
import pytest
from many_importers import import_at_once, machines
from mlflow_grid import GRID, all_runs, grid_runs, write_language, write_point

from blast.errors import BlastError
from blast.experiment.plan.paths import GridFolder
from blast.experiment.tracking import run as run_module
from blast.experiment.tracking.experiments import GridExperiment
from blast.experiment.tracking.importer import import_grid
from blast.experiment.tracking.one_run import DROPPED, IMPORT, KEPT, make_current, one_run
from blast.experiment.tracking.store import open_client, tracking_uri

needs_postgresql = pytest.mark.skipif(
    postgresql_server.programs() is None, reason="needs a PostgreSQL server (Debian: apt-get install postgresql)"
)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgresql_server.postgresql() as address:
        yield address


def new_store(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Address of a store that nobody has used: no file, or a database without tables."""
    if kind == "sqlite":
        return tracking_uri(tmp_path, f"sqlite:///{tmp_path}/store/runs.db")
    name = request.node.originalname[:60]
    return tracking_uri(tmp_path, postgresql_server.new_database(request.getfixturevalue("server"), name))


def check_complete(uri: str, records: int) -> None:
    """Each record has one complete current run with everything in it once, nested in the one run of the grid."""
    runs = all_runs(uri)
    (parent,) = grid_runs(uri)
    assert parent.info.status == "FINISHED"
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {parent.info.run_id}
    assert Counter(run.info.run_name for run in runs) == {f"p{number:03}": 1 for number in range(records)}
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.tags["superseded"] for run in runs} == {"false"}
    assert {run.data.params["training.steps"] for run in runs} == {"3"}
    assert {len(run.inputs.dataset_inputs) for run in runs} == {1}
    client = open_client(uri)
    histories = [client.get_metric_history(run.info.run_id, "curves/train_loss") for run in runs]
    assert {tuple(entry.step for entry in history) for history in histories} == {(0, 1, 2)}
    files = {"record.json", "point.json", "log.txt", "masks"}
    for run in runs:
        assert {entry.path for entry in client.list_artifacts(run.info.run_id)} == files


@pytest.mark.fault(
    fault="Several importers write to one store at once (sqlite or PostgreSQL).",
    topic="MLflow",
    happens="Each record becomes exactly one run.",
    lost="nothing",
)
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=needs_postgresql)])
def test_eight_importers_of_the_same_two_hundred_records(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    uri = new_store(kind, request, tmp_path)
    assert import_at_once(machines(tmp_path, 8, 200), uri) == [0] * 8
    check_complete(uri, 200)


@pytest.mark.fault(
    fault="An importer is killed.",
    topic="MLflow",
    happens="The next one completes its runs.",
    lost="nothing",
)
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=needs_postgresql)])
def test_the_runs_of_killed_importers_are_completed_by_the_next_one(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    uri = new_store(kind, request, tmp_path)
    folders = machines(tmp_path, 4, 12)

    def kill_at(call: int) -> Callable[[], None]:
        def patch() -> None:
            left = [call]
            whole = run_module._gather_artifacts

            def gather(*given: Any) -> Any:
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
                return whole(*given)

            run_module._gather_artifacts = gather

        return patch

    codes = import_at_once(folders, uri, {0: kill_at(1), 1: kill_at(2), 2: kill_at(1)})
    assert codes[3] == 0
    assert set(codes[:3]) <= {0, -signal.SIGKILL}
    import_grid(folders[1].root, uri=uri)
    check_complete(uri, 12)


@pytest.mark.fault(
    fault="An importer is killed while it makes the tables of a new database.",
    topic="MLflow",
    happens="The next one completes them.",
    lost="nothing",
)
@needs_postgresql
@pytest.mark.slow
def test_tables_that_a_killed_importer_left_half_made_are_completed(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    uri = new_store("postgresql", request, tmp_path)
    (folder,) = machines(tmp_path, 1, 1)

    def patch() -> None:
        import mlflow.store.db.utils as utils

        utils._upgrade_db = lambda _: os.kill(os.getpid(), signal.SIGKILL)

    assert import_at_once([folder], uri, {0: patch}) == [-signal.SIGKILL]
    assert import_grid(folder.root, uri=uri).added == ["p000"]


@pytest.mark.fault(
    fault="Several machines import different records of one point.",
    topic="MLflow",
    happens="One run is the current one. The others are tagged as superseded.",
    lost="nothing",
)
@needs_postgresql
@pytest.mark.slow
def test_importers_of_different_records_of_a_point_leave_one_current_run(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    uri = new_store("postgresql", request, tmp_path)
    folders = [GridFolder(tmp_path / f"machine{number}" / "results" / GRID) for number in range(4)]
    for number, folder in enumerate(folders):
        for name in ("p0", "p1", "p2"):
            write_language(folder, write_point(folder, name, loss=2.0 + number))
    assert import_at_once(folders, uri) == [0] * 4
    runs = all_runs(uri)
    assert Counter(run.info.run_name for run in runs) == {"p0": 4, "p1": 4, "p2": 4}
    current = [run.info.run_name for run in runs if run.data.tags["superseded"] == "false"]
    assert sorted(current) == ["p0", "p1", "p2"]
    client = open_client(uri)
    assert {len(client.get_metric_history(run.info.run_id, "pystdlib_next_line/acc")) for run in runs} == {1}


def test_a_run_that_another_importer_is_writing_is_not_deleted_but_completed(mlflow_folder: GridFolder) -> None:
    record = write_point(mlflow_folder, "p1")
    client, experiment = _experiment(mlflow_folder)
    other = one_run(
        client, experiment, "p1", record["record_digest"], lambda: run_module.make_run(client, experiment, record)
    )
    assert import_grid(mlflow_folder.root).added == ["p1"]
    # The other one goes on as if nothing had happened.
    run_module.complete_run(client, other, mlflow_folder.record("p1"), record, mlflow_folder)
    (run,) = all_runs(tracking_uri(mlflow_folder.root.parent))
    assert run.info.run_id == other.info.run_id
    assert len(client.get_metric_history(run.info.run_id, "curves/train_loss")) == 3
    assert len(run.inputs.dataset_inputs) == 1


def test_a_running_run_of_another_record_of_the_point_is_left_alone(mlflow_folder: GridFolder) -> None:
    client, experiment = _experiment(mlflow_folder)
    other = run_module.make_run(client, experiment, write_point(mlflow_folder, "p1", loss=3.0))
    write_point(mlflow_folder, "p1", loss=2.0)
    import_grid(mlflow_folder.root)
    left = client.get_run(other.info.run_id)
    assert (left.info.status, left.info.lifecycle_stage) == ("RUNNING", "active")
    assert IMPORT not in left.data.params


@pytest.mark.parametrize("first", [0, 1])
def test_two_candidates_end_as_one_run_whoever_comes_first(mlflow_folder: GridFolder, first: int) -> None:
    record = write_point(mlflow_folder, "p1")
    client, experiment = _experiment(mlflow_folder)
    made = [run_module.make_run(client, experiment, record).info.run_id for _ in range(2)]
    if first:
        # Another importer saw only the later one, and has kept it.
        client.log_param(max(made), IMPORT, KEPT)
    chosen = one_run(client, experiment, "p1", record["record_digest"], lambda: pytest.fail("a third one"))
    assert chosen.info.run_id == (max(made) if first else min(made))
    dropped = client.get_run(min(made) if first else max(made))
    assert (dropped.data.params[IMPORT], dropped.info.lifecycle_stage) == (DROPPED, "deleted")


def test_a_candidate_that_is_dropped_while_it_is_made_is_not_used(mlflow_folder: GridFolder) -> None:
    record = write_point(mlflow_folder, "p1")
    client, experiment = _experiment(mlflow_folder)
    made: list[str] = []

    def make() -> None:
        made.append(run_module.make_run(client, experiment, record).info.run_id)
        if len(made) == 1:
            client.log_param(made[0], IMPORT, DROPPED)

    chosen = one_run(client, experiment, "p1", record["record_digest"], make)
    assert len(made) == 2
    assert chosen.info.run_id == made[1]


def test_runs_that_an_earlier_version_doubled_become_one(mlflow_folder: GridFolder) -> None:
    record = write_point(mlflow_folder, "p1")
    client, experiment = _experiment(mlflow_folder)
    for _ in range(2):
        run = run_module.make_run(client, experiment, record)
        run_module.complete_run(client, run, mlflow_folder.record("p1"), record, mlflow_folder)
        client.set_tag(run.info.run_id, "superseded", "false")
    assert import_grid(mlflow_folder.root).unchanged == ["p1"]
    (run,) = all_runs(tracking_uri(mlflow_folder.root.parent))
    assert run.data.tags["superseded"] == "false"


def test_of_two_importers_that_undo_each_other_one_run_is_current(
    mlflow_folder: GridFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, experiment = _experiment(mlflow_folder)
    for loss in (1.0, 2.0):
        write_point(mlflow_folder, "p1", loss=loss)
        import_grid(mlflow_folder.root)
    first, second = (run.info.run_id for run in sorted(all_runs(client_uri(mlflow_folder)), key=_loss))
    set_tag, meddled = type(client._client).set_tag, []

    def meddle(self: Any, run_id: str, key: str, value: Any) -> None:
        set_tag(self, run_id, key, value)
        if not meddled:
            meddled.append(True)
            for other in (first, second):
                set_tag(self, other, "superseded", "true")

    monkeypatch.setattr(type(client._client), "set_tag", meddle)
    make_current(client, experiment, "p1", first)
    assert meddled
    tags = [run.data.tags["superseded"] for run in all_runs(client_uri(mlflow_folder))]
    assert sorted(tags) == ["false", "true"]


def test_a_busy_database_is_waited_for(mlflow_folder: GridFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    write_point(mlflow_folder, "p1")
    refused = {"create_run": 2, "log_batch": 3, "log_inputs": 1, "set_tag": 1, "log_param": 1, "update_run_info": 1}
    for name in refused:
        monkeypatch.setattr(SqlAlchemyStore, name, _refusing(name, getattr(SqlAlchemyStore, name), refused))
    assert import_grid(mlflow_folder.root).added == ["p1"]
    assert not any(refused.values())
    (run,) = all_runs(client_uri(mlflow_folder))
    assert run.data.tags["superseded"] == "false"


@needs_postgresql
@pytest.mark.slow
def test_no_message_holds_the_password_of_the_database(server: str, tmp_path: Path) -> None:
    (folder,) = machines(tmp_path, 1, 1)
    with pytest.raises(BlastError) as raised:
        import_grid(folder.root, uri=server + "nowhere")
    assert 'database "nowhere" does not exist' in str(raised.value)
    assert "sec%3Aret" not in str(raised.value)
    assert "records are unchanged" in str(raised.value)
    summary = import_grid(folder.root, uri=postgresql_server.new_database(server, "quiet"))
    assert "sec%3Aret" not in summary.line()


@pytest.mark.fault(
    fault="The files of the runs of a PostgreSQL are not on this machine.",
    topic="MLflow",
    happens="The import is refused. Nothing is written.",
    reads="… this machine does not have; mount it here",
    lost="nothing",
)
@needs_postgresql
@pytest.mark.slow
def test_a_machine_without_the_folder_of_the_artifacts_is_told(
    request: pytest.FixtureRequest, tmp_path: Path, reads: faults.Reads
) -> None:
    uri = new_store("postgresql", request, tmp_path)
    first, second = machines(tmp_path, 2, 1)
    import_grid(first.root, uri=uri)
    place = first.root.parent / "mlflow"
    place.rename(tmp_path / "elsewhere")
    with pytest.raises(
        BlastError, match=rf"{place}/artifacts/{GRID}: .* this machine does not have; mount it here"
    ) as raised:
        import_grid(second.root, uri=uri)
    reads(str(raised.value))
    assert not place.exists()
    # As the message says.
    place.symlink_to(tmp_path / "elsewhere")
    assert import_grid(second.root, uri=uri).unchanged == ["p000"]


@pytest.mark.fault(
    fault="A PostgreSQL cannot be reached.",
    topic="MLflow",
    happens="The import stops with one sentence.",
    reads=(
        "the database … cannot be used (connection refused); start it, or correct "
        "MLFLOW_TRACKING_URI (…), then import again: the records are unchanged."
    ),
    lost="nothing",
)
def test_a_database_that_does_not_answer_is_given_up_in_seconds(tmp_path: Path, reads: faults.Reads) -> None:
    (folder,) = machines(tmp_path, 1, 1)
    message = r"the database postgresql.*cannot be used \(connection refused\); start it"
    with pytest.raises(BlastError, match=message) as raised:
        import_grid(folder.root, uri="postgresql://someone@127.0.0.1:1/runs")
    reads(str(raised.value))


def _refusing(name: str, whole: Callable[..., Any], refused: dict[str, int]) -> Callable[..., Any]:
    """A method of the store that says `refused[name]` times that the database is locked."""
    from mlflow.exceptions import MlflowException

    def busy(*given: Any, **named: Any) -> Any:
        if refused[name]:
            refused[name] -= 1
            raise MlflowException("(sqlite3.OperationalError) database is locked")
        return whole(*given, **named)

    return busy


def client_uri(folder: GridFolder) -> str:
    return tracking_uri(folder.root.parent)


def _loss(run: Any) -> float:
    return run.data.metrics["quality/loss"]


def _experiment(folder: GridFolder) -> tuple[Any, str]:
    """A client, and the id of the experiment of the grid."""
    uri = client_uri(folder)
    client = open_client(uri)
    return client, GridExperiment(client, uri, folder.root.parent, GRID, "train").id
