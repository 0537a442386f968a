"""What MLflow says on a full or read-only disk, without a server and without a driver: each remedy is followed."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import faults
import pytest
from disks import grow, read_only, small_disk
from mlflow_grid import GRID, runs_of, write_point
from patience import PATIENCE

from blast.experiment.cli import main
from blast.experiment.plan.paths import GridFolder
from blast.experiment.tracking.store_errors import shown


def importer(folder: GridFolder, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "blast.experiment.tracking.importer", "--grid-dir", str(folder.root)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env={**os.environ, **environment})


@pytest.mark.fault(
    fault="The disk fills during an import.",
    topic="MLflow",
    happens="Finished runs stay. The import exits with 1.",
    reads=(
        "blast: …: MLflow cannot write here (database or disk is full); free some space, then "
        "import again: the records are unchanged."
    ),
    lost="nothing",
)
@pytest.mark.slow
@pytest.mark.parametrize("kib", [300, 1400])
def test_a_full_disk_leaves_the_records_and_the_runs_that_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kib: int, reads: faults.Reads
) -> None:
    """300 KiB are too few for the database, 1400 for all runs."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = GridFolder(tmp_path / "disk" / "results" / GRID)
    with small_disk(tmp_path / "disk", kib):
        names = [f"p{number}" for number in range(10)]
        for name in names:
            write_point(folder, name)
        found = importer(folder)
        assert found.returncode == 1
        assert found.stderr.count("\n") == 1
        assert f"{folder.root.parent}/mlflow: MLflow cannot write here (" in found.stderr
        assert "full); free some space, then import again: the records are unchanged." in found.stderr
        reads(found.stderr)
        # As the message says.
        grow(tmp_path / "disk", 30_000)
        assert importer(folder).returncode == 0
        runs = runs_of(folder)
        assert sorted(run.info.run_name for run in runs) == names
        assert {run.info.status for run in runs} == {"FINISHED"}


@pytest.mark.fault(
    fault="The results are read-only where MLflow wants to write.",
    topic="MLflow",
    happens="The import exits with 1.",
    reads="MLflow cannot write here (…); make its folder writable",
    lost="nothing",
)
@pytest.mark.slow
def test_a_read_only_folder_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: faults.Reads
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = GridFolder(tmp_path / "results" / GRID)
    write_point(folder, "p1")
    for made in (False, True):
        if made:
            assert importer(folder).returncode == 0
            write_point(folder, "p2")
        with read_only(folder.root.parent):
            found = importer(folder)
            assert found.returncode == 1
            assert found.stderr.count("\n") == 1
            assert "mlflow: MLflow cannot write here (" in found.stderr
            assert "make its folder writable" in found.stderr
            reads(found.stderr)
            # As the message says: another store.
            elsewhere = importer(folder, MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path}/{made}/mlflow.db")
            assert elsewhere.returncode == 0
    # As the message says: writable again.
    assert "1 runs added, 1 already there" in importer(folder).stdout


@pytest.mark.fault(
    fault="An MLflow server cannot be reached.",
    topic="MLflow",
    happens="`blast mlflow` exits with 1. In the workflow, the verdict says it.",
    reads=(
        "not imported: the MLflow server … did not accept the runs (connection refused); start "
        "it or set MLFLOW_TRACKING_URI, then import again: the records are unchanged."
    ),
    lost="nothing",
)
def test_blast_mlflow_fails_where_the_server_cannot_be_reached(
    mlflow_folder: GridFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], reads: faults.Reads
) -> None:
    write_point(mlflow_folder, "p1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free.getsockname()[1]}")
    command = ["mlflow", "p1", "--grid-dir", str(mlflow_folder.root)]
    assert main(command) == 1
    said = capsys.readouterr()
    assert not said.out
    assert "start it or set MLFLOW_TRACKING_URI, then import again" in said.err
    reads(said.err)
    # The workflow reads the file instead, in its verdict.
    file = mlflow_folder.root / "line.txt"
    assert main([*command, "--out", str(file)]) == 0
    assert file.read_text() == said.err
    # As the message says.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{mlflow_folder.root.parent}/mlflow/mlflow.db")
    assert main(command) == 0
    assert [run.info.run_name for run in runs_of(mlflow_folder)] == ["p1"]


def without_driver(folder: Path) -> dict[str, str]:
    """An environment in which psycopg is not installed, until something is installed into `folder`."""
    (folder / "hide").mkdir(parents=True)
    (folder / "hide" / "sitecustomize.py").write_text(
        "import importlib.machinery, pathlib, sys\n"
        f"if not pathlib.Path({str(folder / 'installed')!r}).is_dir():\n"
        "    class Hidden:\n"
        "        def find_spec(self, name, path=None, target=None):\n"
        "            if name.split('.')[0] == 'psycopg':\n"
        "                raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "    sys.meta_path.insert(0, Hidden())\n"
    )
    paths = [str(folder / "installed"), str(folder / "hide"), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(paths), "MLFLOW_TRACKING_URI": "postgresql://me:pass@127.0.0.1:1/runs"}


@pytest.mark.fault(
    fault="The driver of PostgreSQL is not installed.",
    topic="MLflow",
    happens="The import exits with 1. The command of the message installs the driver.",
    reads="run `… -m pip install …psycopg…`, then import again",
    lost="nothing",
)
@pytest.mark.slow
def test_a_missing_driver_is_installed_by_the_command_of_the_message(tmp_path: Path, reads: faults.Reads) -> None:
    folder = GridFolder(tmp_path / "results" / GRID)
    write_point(folder, "p1")
    environment = without_driver(tmp_path / "place")
    found = importer(folder, **environment)
    assert found.returncode == 1
    assert found.stderr.count("\n") == 1
    assert "me:***@127.0.0.1:1/runs" in found.stderr
    reads(found.stderr)
    command = re.search(r"run `(.+)`, then import again", found.stderr)[1]
    # As the message says, but into a folder of the test.
    pip = {**os.environ, "PIP_TARGET": str(tmp_path / "place" / "installed"), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    installed = subprocess.run(["bash", "-c", command], env=pip, capture_output=True, text=True, timeout=PATIENCE)
    if installed.returncode:
        assert "psycopg" in installed.stderr
        pytest.skip(f"the package registry cannot be reached ({installed.stderr.splitlines()[-1]})")
    found = importer(folder, **environment)
    assert "(connection refused); start it, or correct MLFLOW_TRACKING_URI" in found.stderr
    assert "pass" not in found.stderr.replace("PASSWORD", "")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("postgresql://me:a%40b@host:5432/runs", "postgresql://me:***@host:5432/runs"),
        ("http://me:secret@host:5000/a:b@c", "http://me:***@host:5000/a:b@c"),
        ("sqlite:////runs/a:b@c.db", "sqlite:////runs/a:b@c.db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("to http://me:secret@host and postgresql+psycopg://a:b@c/d", "to http://me:***@host and "
         "postgresql+psycopg://a:***@c/d"),
    ],
)  # fmt: skip
def test_an_address_is_shown_without_its_password(address: str, said: str) -> None:
    assert shown(address) == said
