"""A real MLflow server on a real PostgreSQL, as docs/mlflow.md sets it up, takes a grid, a stream and a model."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import postgresql_server
import pytest
import torch
from mlflow_grid import all_runs, grid_runs, write_point
from mlflow_models import image_model, is_sparse, write_checkpoint
from mlflow_pages import fetch
from patience import PATIENCE

import blast
from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.run.step_file import tell_steps
from blast.experiment.tracking.importer import import_grid
from blast.experiment.tracking.store import make_quiet
from blast.experiment.tracking.stream import Streams
from blast.files import write_json

PAGE = Path(__file__).resolve().parents[3] / "docs" / "mlflow.md"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        postgresql_server.programs() is None, reason="needs a PostgreSQL server (Debian: apt-get install postgresql)"
    ),
]


def command_of_the_docs(store: str, artifacts: Path, port: int) -> tuple[list[str], dict[str, str]]:
    """The command that the page gives for a server, with the values of this test, and its environment."""
    (text,) = re.findall(r"^```sh\n(MLFLOW_BACKEND_STORE_URI=.*?)```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    words = shlex.split(text.replace("\\\n", " "))
    environment = {"MLFLOW_BACKEND_STORE_URI": store}
    words = [word for word in words if "=" not in word.split("/")[0] or word.startswith("--")]
    given = {"--artifacts-destination": str(artifacts), "--host": "127.0.0.1", "--port": str(port)}
    for option, value in given.items():
        words[words.index(option) + 1] = value
    assert words[0] == "mlflow"
    return [sys.executable, "-m", *words], environment


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an MLflow server with one worker on a PostgreSQL."""
    root = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with postgresql_server.postgresql() as address:
        store = postgresql_server.new_database(address, "runs").replace("postgresql://", "postgresql+psycopg://")
        command, environment = command_of_the_docs(f"{store}?client_encoding=utf8", root / "artifacts", port)
        make_quiet()
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (root / "log").open("w") as log:
            process = subprocess.Popen(
                [*command, "--workers", "1"], env=os.environ | quiet | environment, stdout=log, stderr=log,
                start_new_session=True, cwd=root,
            )  # fmt: skip
        try:
            deadline = time.monotonic() + PATIENCE
            while True:
                try:
                    fetch(f"http://127.0.0.1:{port}/health")
                    break
                except OSError:
                    assert process.poll() is None, (root / "log").read_text()
                    assert time.monotonic() < deadline, (root / "log").read_text()
                    time.sleep(0.3)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(PATIENCE)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", str(PATIENCE))


def test_a_grid_is_imported_nested_and_its_model_loads_back_from_the_server(server: str, tmp_path: Path) -> None:
    folder = GridFolder(tmp_path / "results" / "tiny")
    write_point(folder, "p0")
    place = write_checkpoint(folder, "p1", image_model())
    assert import_grid(folder.root, uri=server).added == ["p0", "p1"]
    assert import_grid(folder.root, uri=server).unchanged == ["p0", "p1"]
    (parent,) = grid_runs(server)
    runs = {run.info.run_name: run for run in all_runs(server)}
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent.info.run_id}
    mlflow.set_tracking_uri(server)
    try:
        model = mlflow.pyfunc.load_model(f"runs:/{runs['p1'].info.run_id}/model")
    finally:
        mlflow.set_tracking_uri(None)
    assert is_sparse(model)
    images = np.random.default_rng(0).standard_normal((2, 3, 8, 8), dtype=np.float32)
    expected = blast.load(place)(torch.from_numpy(images)).softmax(-1).detach().numpy()
    np.testing.assert_allclose(model.predict(images), expected, rtol=1e-5, atol=1e-6)


def test_a_curve_is_streamed_to_the_server_and_the_import_completes_its_run(server: str, tmp_path: Path) -> None:
    folder = GridFolder(tmp_path / "results" / "streamed")
    point = Point.from_dict(write_point(folder, "p1", grid="streamed")["point"])
    folder.record("p1").unlink()
    write_json(folder.work("p1") / "point.json", point.to_dict())
    streams = Streams(folder, uri=server)
    with tell_steps(point, folder) as watch:
        watch(1, {"loss": 5.0, "train_loss": 5.0})
        streams.look()
        (run,) = all_runs(server, "streamed")
        assert (run.info.status, run.data.metrics["curves/train_loss"]) == ("RUNNING", 5.0)
    record = write_point(folder, "p1", grid="streamed")
    record["run"]["host"] = os.uname().nodename
    write_json(folder.record("p1"), record)
    import_grid(folder.root, uri=server)
    streams.close()
    (done,) = all_runs(server, "streamed")
    assert (done.info.run_id, done.info.status) == (run.info.run_id, "FINISHED")
    assert done.data.metrics["curves/train_loss"] == pytest.approx(5.0 / 3)
