"""Each failure of the MLflow store is one sentence and leaves the records unchanged."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import urllib.parse
from pathlib import Path

import faults
import pytest
from mlflow_grid import GRID, runs_of, write_point
from mute_server import connections
from patience import PATIENCE

from blast.errors import BlastError
from blast.experiment.plan.paths import GridFolder
from blast.experiment.tracking.database import new_database
from blast.experiment.tracking.importer import import_grid
from blast.experiment.tracking.store import open_client, tracking_uri
from blast.experiment.tracking.ui import prepare


@pytest.mark.slow
def test_two_processes_may_create_a_new_database_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = GridFolder(tmp_path / "results" / GRID)
    ids = [f"p{i}" for i in range(6)]
    for name in ids:
        write_point(folder, name)
    # They share two points. The first process to come imports them.
    command = [sys.executable, "-m", "blast.experiment.tracking.importer", "--grid-dir", str(folder.root)]
    halves = [subprocess.Popen([*command, *part], stdout=subprocess.PIPE, text=True) for part in (ids[:4], ids[2:])]
    lines = [half.communicate(timeout=PATIENCE)[0] for half in halves]
    assert [half.returncode for half in halves] == [0, 0]
    assert sorted(run.info.run_name for run in runs_of(folder)) == ids
    assert [line.count("\n") for line in lines] == [1, 1]


def test_a_server_that_refuses_leaves_the_records_unchanged(mlflow_folder: GridFolder) -> None:
    write_point(mlflow_folder, "p1")
    before = mlflow_folder.record("p1").read_bytes()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(
        BlastError, match=r"did not accept the runs \(connection refused\).*records are unchanged"
    ) as raised:
        import_grid(mlflow_folder.root, uri=f"http://127.0.0.1:{port}")
    assert "\n" not in str(raised.value)
    assert mlflow_folder.record("p1").read_bytes() == before


@pytest.mark.fault(
    fault="An MLflow server takes the connection and never answers.",
    topic="MLflow",
    happens="The import gives up after a few requests.",
    reads="no answer in time",
    lost="nothing",
)
def test_a_server_that_never_answers_is_given_up(
    mlflow_folder: GridFolder, monkeypatch: pytest.MonkeyPatch, reads: faults.Reads
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    write_point(mlflow_folder, "p1")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(BlastError, match="no answer in time") as raised:
            import_grid(mlflow_folder.root, uri=f"http://127.0.0.1:{silent.getsockname()[1]}")
        reads(str(raised.value))
        assert connections(silent) <= 3


@pytest.mark.fault(
    fault="`mlflow.db` is damaged or empty.",
    topic="MLflow",
    happens="It is put aside, with the file that sqlite keeps beside it, and made again.",
    reads=(
        "…: this MLflow database is damaged, so it was renamed to mlflow.db.damaged-… and is "
        "made again from the records; `make ui` imports all of them."
    ),
    lost="nothing of the records; notes made in MLflow stay in the file that was put aside",
)
@pytest.mark.parametrize("damaged", [b"not a database" * 100, b""], ids=["other bytes", "empty"])
def test_a_damaged_database_is_put_aside_and_made_again(
    mlflow_folder: GridFolder, capsys: pytest.CaptureFixture[str], damaged: bytes, reads: faults.Reads
) -> None:
    write_point(mlflow_folder, "p1")
    database = mlflow_folder.root.parent / "mlflow" / "mlflow.db"
    database.write_bytes(damaged)
    # What sqlite keeps beside a database would otherwise be played into the new one.
    Path(f"{database}-wal").write_bytes(b"old")
    database.with_name("mlflow.db.damaged-1").write_bytes(b"of last week")
    assert import_grid(mlflow_folder.root).added == ["p1"]
    assert [run.info.run_name for run in runs_of(mlflow_folder)] == ["p1"]
    aside = database.with_name("mlflow.db.damaged-2")
    assert aside.read_bytes() == damaged
    assert Path(f"{aside}-wal").read_bytes() == b"old"
    said = capsys.readouterr().err
    assert "renamed to mlflow.db.damaged-2 and is made again" in said
    reads(said)


def test_the_page_has_all_runs_after_a_database_was_put_aside(mlflow_folder: GridFolder) -> None:
    """The message says so: the import that finds the damage may be one of a few points."""
    for name in ("p1", "p2"):
        write_point(mlflow_folder, name)
    results = mlflow_folder.root.parent
    (results / "mlflow" / "mlflow.db").write_bytes(b"not a database" * 100)
    import_grid(mlflow_folder.root, ["p1"])
    assert [run.info.run_name for run in runs_of(mlflow_folder)] == ["p1"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    prepare(results, port)
    assert sorted(run.info.run_name for run in runs_of(mlflow_folder)) == ["p1", "p2"]


def test_a_file_of_others_is_never_put_aside(mlflow_folder: GridFolder, tmp_path: Path) -> None:
    write_point(mlflow_folder, "p1")
    notes = tmp_path / "notes" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("not a database" * 100)
    with pytest.raises(BlastError, match=r"notes\.txt: the MLflow database cannot be used \(.*move its folder away"):
        import_grid(mlflow_folder.root, uri=f"sqlite:///{notes}")
    assert [file.name for file in notes.parent.iterdir()] == ["notes.txt"]
    # As the message says.
    notes.parent.rename(tmp_path / "away")
    assert import_grid(mlflow_folder.root, uri=f"sqlite:///{notes}").added == ["p1"]


@pytest.mark.fault(
    fault="The results folder is moved or copied.",
    topic="MLflow",
    happens="The database follows. Nothing is written to the old place.",
    lost="nothing",
)
@pytest.mark.parametrize("copied", [False, True])
def test_a_moved_or_copied_folder_keeps_its_runs_and_writes_nothing_to_the_old_place(
    mlflow_folder: GridFolder, tmp_path: Path, copied: bool
) -> None:
    write_point(mlflow_folder, "p1", loss=3.0)
    import_grid(mlflow_folder.root)
    write_point(mlflow_folder, "p1")
    import_grid(mlflow_folder.root)
    moved = GridFolder(tmp_path / "else where %20" / "results" / GRID)
    moved.root.parent.parent.mkdir()
    (shutil.copytree if copied else shutil.move)(mlflow_folder.root.parent, moved.root.parent)
    before = {path for path in mlflow_folder.root.parent.rglob("*") if path.suffix == ".png"}
    write_point(moved, "p2")
    summary = import_grid(moved.root)
    assert (summary.unchanged, summary.added) == (["p1"], ["p2"])
    runs = runs_of(moved)
    # The superseded run of an older record cannot be made again: it is kept too.
    assert sorted(run.info.run_name for run in runs) == ["p1", "p1", "p2"]
    for run in runs:
        folder = Path(urllib.parse.unquote(run.info.artifact_uri.removeprefix("file://")))
        assert folder.is_relative_to(moved.root.parent / "mlflow" / "artifacts")
        assert (folder / "masks" / "last.png").is_file()
    assert {path for path in mlflow_folder.root.parent.rglob("*") if path.suffix == ".png"} == before
    assert copied or not mlflow_folder.root.parent.exists()


def test_experiments_of_others_in_the_same_database_are_not_moved(mlflow_folder: GridFolder, tmp_path: Path) -> None:
    uri = tracking_uri(mlflow_folder.root.parent)
    place = (tmp_path / "data" / "artifacts" / "theirs").as_uri()
    open_client(uri).create_experiment("theirs", artifact_location=place)
    assert open_client(uri).get_experiment_by_name("theirs").artifact_location == place


def test_a_new_database_never_replaces_that_of_another_process(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    file.write_bytes(b"of another process")
    new_database(file)
    assert file.read_bytes() == b"of another process"
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def test_the_address_is_the_given_one_then_the_environment_then_the_results(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(tmp_path) == f"sqlite:///{tmp_path.resolve()}/mlflow/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:5000")
    assert tracking_uri(tmp_path) == "http://mlflow.example:5000"
    monkeypatch.chdir(tmp_path)
    assert tracking_uri(tmp_path, "sqlite:///a/b.db") == f"sqlite:///{tmp_path.resolve()}/a/b.db"


def test_a_path_that_mlflow_cannot_use_is_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(BlastError, match=r"MLflow takes no path with a question mark; rename the folder, or set"):
        tracking_uri(tmp_path / "a?b" / "results")
    assert tracking_uri(tmp_path / "a#b %20" / "results") == f"sqlite:///{tmp_path}/a#b %20/results/mlflow/mlflow.db"
    monkeypatch.setattr(mlflow, "__file__", "/home/a%20b/mlflow/__init__.py")
    with pytest.raises(
        BlastError, match=r"/home/a%20b/mlflow: MLflow makes no database if its own path holds a percent"
    ):
        open_client(tracking_uri(tmp_path / "results"))
    assert not list(tmp_path.iterdir())
