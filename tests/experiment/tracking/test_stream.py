"""A point is a running run while it trains, and the import of its record completes that very run."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow_grid import grid_runs, runs_of, write_point
from patience import PATIENCE, wait_until

from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.run import system_metrics
from blast.experiment.run.step_file import tell_steps
from blast.experiment.tracking import stream
from blast.experiment.tracking.importer import import_grid
from blast.experiment.tracking.live_run import RECORD
from blast.experiment.tracking.store import open_client, tracking_uri
from blast.experiment.tracking.stream import Streams, follow
from blast.files import write_json


def planned(folder: GridFolder, name: str = "p1") -> Point:
    """The point of `write_point`, as a job writes it before it trains; there is no record yet."""
    point = Point.from_dict(write_point(folder, name)["point"])
    folder.record(name).unlink()
    write_json(folder.work(name) / "point.json", point.to_dict())
    return point


def record_of(folder: GridFolder, name: str = "p1", **changes: Any) -> None:
    """The record that the training came to, from this machine."""
    record = write_point(folder, name, **changes)
    record["run"]["host"] = os.uname().nodename
    write_json(folder.record(name), record)


def fail(telling: Any, error: BaseException) -> None:
    """Ends the block of a context as an error does."""
    assert not telling.__exit__(type(error), error, None)


def history(folder: GridFolder, run: Any, name: str) -> list[tuple[int, float]]:
    client = open_client(tracking_uri(folder.root.parent))
    return sorted((entry.step, entry.value) for entry in client.get_metric_history(run.info.run_id, name))


def test_a_point_is_a_running_run_while_it_trains_and_its_record_completes_that_run(mlflow_folder: GridFolder) -> None:
    point = planned(mlflow_folder)
    streams = Streams(mlflow_folder)
    with tell_steps(point, mlflow_folder) as watch:
        watch(1, {"loss": 5.0, "train_loss": 5.0})
        streams.look()
        (run,) = runs_of(mlflow_folder)
        assert (run.info.run_name, run.info.status) == ("p1", "RUNNING")
        assert run.data.params["training.steps"] == "3"
        assert run.data.tags["superseded"] == "false"
        assert run.data.metrics["curves/train_loss"] == 5.0
        assert run.data.metrics["progress/percent"] == pytest.approx(100 / 3, abs=0.01)
        (parent,) = grid_runs(tracking_uri(mlflow_folder.root.parent))
        assert (parent.info.status, run.data.tags["mlflow.parentRunId"]) == ("RUNNING", parent.info.run_id)
        watch(2, {"loss": 2.5, "train_loss": 2.5})
    streams.look()
    assert history(mlflow_folder, run, "curves/train_loss") == [(0, 5.0), (1, 2.5)]
    record_of(mlflow_folder)
    assert import_grid(mlflow_folder.root).added == ["p1"]
    (done,) = runs_of(mlflow_folder)
    assert (done.info.run_id, done.info.status) == (run.info.run_id, "FINISHED")
    assert history(mlflow_folder, run, "curves/train_loss") == [(0, 5.0), (1, 2.5), (2, 5.0 / 3)]
    assert done.data.tags["commit"] == "c0ffee"
    assert import_grid(mlflow_folder.root).unchanged == ["p1"]
    streams.close()
    assert [each.info.status for each in runs_of(mlflow_folder)] == ["FINISHED"]


def test_a_training_that_ended_between_two_looks_is_at_a_hundred_percent(mlflow_folder: GridFolder) -> None:
    streams = Streams(mlflow_folder)
    with tell_steps(planned(mlflow_folder), mlflow_folder) as watch:
        watch(1, {"loss": 5.0, "train_loss": 5.0})
        streams.look()
        watch(2, {"loss": 2.5, "train_loss": 2.5})
        watch(3, {"loss": 2.0, "train_loss": 2.0})
    record_of(mlflow_folder)
    streams.look()
    (run,) = runs_of(mlflow_folder)
    assert run.data.metrics["progress/percent"] == 100
    # Its curves come from the record.
    assert history(mlflow_folder, run, "curves/train_loss") == [(0, 5.0)]
    import_grid(mlflow_folder.root)
    (run,) = runs_of(mlflow_folder)
    assert history(mlflow_folder, run, "curves/train_loss") == [(0, 5.0), (1, 2.5), (2, 5.0 / 3)]
    assert run.data.metrics["progress/percent"] == 100


def test_the_samples_of_the_system_are_where_mlflow_shows_them(
    mlflow_folder: GridFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("psutil")
    monkeypatch.setattr(system_metrics, "FIRST", 0.01)
    point = planned(mlflow_folder)
    with tell_steps(point, mlflow_folder) as watch:
        watch(1, {"loss": 5.0, "train_loss": 5.0})
        wait_until(lambda: "system" in mlflow_folder.live("p1").read_text(), "a sample")
    record_of(mlflow_folder)
    # Nobody streamed it: the import reads what the training told.
    import_grid(mlflow_folder.root)
    (run,) = runs_of(mlflow_folder)
    assert run.data.metrics["system/system_memory_usage_percentage"] > 0


@pytest.mark.fault(
    fault="A job is killed while its point is streamed.",
    topic="MLflow",
    happens="Its run ends as KILLED. When the point is trained again, it goes on in the same run.",
    lost="nothing",
)
def test_the_run_of_a_killed_training_is_ended_and_its_successor_goes_on_in_it(mlflow_folder: GridFolder) -> None:
    point = planned(mlflow_folder)
    first = Streams(mlflow_folder)
    telling = tell_steps(point, mlflow_folder)
    watch = telling.__enter__()
    for step in (1, 2):
        watch(step, {"loss": 6.0 - step, "train_loss": 6.0 - step})
    first.look()
    fail(telling, KeyboardInterrupt())
    first.close()
    (run,) = runs_of(mlflow_folder)
    assert run.info.status == "KILLED"
    (parent,) = grid_runs(tracking_uri(mlflow_folder.root.parent))
    assert parent.info.status == "KILLED"
    second = Streams(mlflow_folder)
    with tell_steps(point, mlflow_folder) as watch:
        # It resumes at its last state, so a step comes again.
        watch(2, {"loss": 4.0, "train_loss": 4.0})
        watch(3, {"loss": 3.0, "train_loss": 3.0})
        second.look()
        (again,) = runs_of(mlflow_folder)
        assert (again.info.run_id, again.info.status) == (run.info.run_id, "RUNNING")
    second.look()
    assert history(mlflow_folder, run, "curves/train_loss") == [(0, 5.0), (1, 4.0), (2, 3.0)]


def test_a_stream_that_was_killed_leaves_no_run_that_seems_to_train(mlflow_folder: GridFolder) -> None:
    point = planned(mlflow_folder)
    killed = Streams(mlflow_folder)
    with tell_steps(point, mlflow_folder) as watch:
        watch(1, {"loss": 5.0})
        killed.look()
    Streams(mlflow_folder)
    (run,) = runs_of(mlflow_folder)
    assert run.info.status == "KILLED"


def test_a_failed_point_ends_its_streamed_run_as_failed(mlflow_folder: GridFolder) -> None:
    point = planned(mlflow_folder)
    streams = Streams(mlflow_folder)
    telling = tell_steps(point, mlflow_folder)
    telling.__enter__()(1, {"loss": 5.0})
    streams.look()
    fail(telling, ZeroDivisionError())
    record_of(mlflow_folder, failed=True)
    import_grid(mlflow_folder.root)
    streams.look()
    streams.close()
    (run,) = runs_of(mlflow_folder)
    assert (run.info.status, run.data.tags["cause"]) == ("FAILED", "the loss is nan at step 1")


def test_a_streamed_run_goes_to_one_of_two_records_and_the_other_gets_a_new_run(mlflow_folder: GridFolder) -> None:
    point = planned(mlflow_folder)
    streams = Streams(mlflow_folder)
    with tell_steps(point, mlflow_folder) as watch:
        watch(1, {"loss": 5.0})
        streams.look()
    (live,) = runs_of(mlflow_folder)
    # Another importer, with another record of this point, has it.
    open_client(tracking_uri(mlflow_folder.root.parent)).log_param(live.info.run_id, RECORD, "sha256:other")
    record_of(mlflow_folder)
    import_grid(mlflow_folder.root)
    new = [run for run in runs_of(mlflow_folder) if run.info.run_id != live.info.run_id]
    assert [run.info.status for run in new] == ["FINISHED"]


def test_a_record_of_another_machine_does_not_take_the_run_of_this_one(mlflow_folder: GridFolder) -> None:
    point = planned(mlflow_folder)
    streams = Streams(mlflow_folder)
    with tell_steps(point, mlflow_folder) as watch:
        watch(1, {"loss": 5.0})
        streams.look()
    write_point(mlflow_folder, "p1")
    import_grid(mlflow_folder.root)
    assert sorted(run.info.status for run in runs_of(mlflow_folder)) == ["FINISHED", "RUNNING"]


def test_a_file_that_a_killed_training_left_long_ago_is_no_running_run(mlflow_folder: GridFolder) -> None:
    point = planned(mlflow_folder)
    with pytest.raises(ZeroDivisionError), tell_steps(point, mlflow_folder):
        raise ZeroDivisionError
    os.utime(mlflow_folder.live("p1"), (0, 0))
    Streams(mlflow_folder).look()
    assert runs_of(mlflow_folder) == []


def test_lines_of_strangers_start_no_run(mlflow_folder: GridFolder) -> None:
    planned(mlflow_folder)
    streams = Streams(mlflow_folder)
    live = mlflow_folder.live("p1")
    live.parent.mkdir()
    for text in ("", "no json\n", '{"begin": 1}\n', '{"begin": {"digest": "sha256:other", "host": "x"}}\n'):
        live.write_text(text)
        streams.look()
    mlflow_folder.live("unknown").write_text('{"begin": {"digest": "sha256:other", "host": "x"}}\n')
    streams.look()
    assert runs_of(mlflow_folder) == []


def test_points_that_run_without_a_workflow_are_streamed_into_their_own_grid(mlflow_folder: GridFolder) -> None:
    away = GridFolder(mlflow_folder.root.parent / "away")
    point = planned(away)
    streams = Streams(away, [])
    with tell_steps(point, away) as watch:
        watch(1, {"loss": 5.0})
        streams.look()
    record_of(away)
    import_grid(away.root)
    streams.close()
    client = open_client(tracking_uri(away.root.parent))
    assert [found.name for found in client.search_experiments()] == ["tiny"]
    (parent,) = grid_runs(tracking_uri(away.root.parent))
    assert parent.info.status == "FINISHED"
    assert [run.info.status for run in runs_of(away)] == ["FINISHED"]


@pytest.mark.fault(
    fault="MLflow cannot be reached while points train.",
    topic="MLflow",
    happens="The training does not notice. The stream says it once in `logs/stream.log`, and tries again each minute.",
    reads="the MLflow server … did not accept the runs (connection refused)",
    lost="nothing: the import sends the curves",
)
def test_a_store_that_cannot_be_reached_is_told_once_and_tried_again(
    mlflow_folder: GridFolder, monkeypatch: pytest.MonkeyPatch, reads: Any
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    said: list[str] = []
    pauses: list[float] = []

    def ends(pause: float) -> bool:
        pauses.append(pause)
        return len(pauses) > 3

    follow(mlflow_folder, ["train"], ends, said.append)
    assert pauses == [0.0, stream.AGAIN, stream.AGAIN, stream.AGAIN]
    (line,) = said
    reads(line)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["closes", "killed"])
def test_the_process_that_streams_ends_with_the_one_that_started_it(mlflow_folder: GridFolder, how: str) -> None:
    planned(mlflow_folder)
    code = (
        "import sys, time; from pathlib import Path\n"
        "from blast.experiment.plan.paths import GridFolder\n"
        "from blast.experiment.tracking import stream\n"
        "end = stream.start(GridFolder(Path(sys.argv[1])), ['train'])\n"
        "print('started', flush=True); sys.stdin.read(); end(); print('ended', flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(mlflow_folder.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "started\n"
        uri = tracking_uri(mlflow_folder.root.parent)
        client = open_client(uri)
        wait_until(lambda: client.get_experiment_by_name("tiny") and grid_runs(uri), "the run of the grid")
        wait_until(lambda: grid_runs(uri)[0].info.status == "RUNNING", "its start")
        if how == "killed":
            process.send_signal(signal.SIGKILL)
        process.stdin.close()
        wait_until(lambda: grid_runs(uri)[0].info.status == "KILLED", "its end")
        process.wait(PATIENCE)
    assert Path(mlflow_folder.log("stream")).read_text() == ""
