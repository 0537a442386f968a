"""MLflow's own server and pages show the imported runs and images."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import postgresql_server
import pytest
from many_importers import import_at_once, machines
from mlflow_pages import CHROMIUM, FLAGS, fetch, points, serving
from patience import PATIENCE
from safetensors.numpy import save_file

from blast.errors import BlastError
from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.records.record import make_record
from blast.experiment.tracking import ui
from blast.experiment.tracking.importer import import_grid
from blast.files import write_json


def write_point(folder: GridFolder) -> None:
    point = Point(id="seen.in.a.browser", grid=folder.root.name, stage="train", architecture="gpt2-nano", sparsity=0.5)
    masks = {"step000000/h.0.fc1": np.eye(4, dtype=np.uint8)}
    folder.work(point.id).mkdir(parents=True)
    save_file(masks, folder.work(point.id) / "masks.safetensors")
    result: dict[str, Any] = {
        "metrics": [{"metric": "bits_per_byte", "unit": "bits/byte", "value": 2.125}],
        "curves": {"train_loss": {"unit": "nats/token", "step": [0, 1], "value": [5.0, 4.0]}},
        "artifacts": {"masks": {"path": "masks.safetensors", "digest": "sha256:0"}},
    }
    write_json(folder.record(point.id), make_record(point, status="ok", result=result, run={"command": "blast job"}))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address that `make ui` prints, with the server behind it, started from the folder that holds `results`.

    The runs were imported in another folder, which was moved then.
    """
    root, before = tmp_path_factory.mktemp("ui"), tmp_path_factory.mktemp("before")
    imported = GridFolder(before / "results" / "tiny")
    write_point(imported)
    assert import_grid(imported.root, uri=f"sqlite:///{before}/results/mlflow/mlflow.db").added
    (before / "results").rename(root / "results")
    with serving(root) as address:
        yield address
        assert {entry.name for entry in root.iterdir()} == {"results", "log"}


@pytest.mark.slow
def test_the_server_hands_out_runs_and_their_pictures(server: str) -> None:
    base, experiment = server.split("/#/")[0], re.search(r"experiments/(\d+)", server)[1]
    found = fetch(base + "/ajax-api/2.0/mlflow/runs/search", {"experiment_ids": [experiment]})
    (run,) = points(json.loads(found)["runs"])
    assert run["info"]["run_name"] == "seen.in.a.browser"
    assert {entry["key"]: entry["value"] for entry in run["data"]["metrics"]}["quality/bits_per_byte"] == 2.125
    picture = fetch(f"{base}/get-artifact?path=masks/last.png&run_uuid={run['info']['run_id']}")
    assert picture.startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_server_takes_the_same_records_as_a_database(server: str, tmp_path: Path) -> None:
    base = server.split("/#/")[0]
    folder = GridFolder(tmp_path / "results" / "sent")
    write_point(folder)
    assert import_grid(folder.root, uri=base).added == ["seen.in.a.browser"]
    assert import_grid(folder.root, uri=base).unchanged == ["seen.in.a.browser"]
    found = json.loads(fetch(base + "/ajax-api/2.0/mlflow/experiments/get-by-name?experiment_name=sent"))
    query = {"experiment_ids": [found["experiment"]["experiment_id"]]}
    (run,) = points(json.loads(fetch(base + "/ajax-api/2.0/mlflow/runs/search", query))["runs"])
    assert fetch(f"{base}/get-artifact?path=masks/last.png&run_uuid={run['info']['run_id']}").startswith(b"\x89PNG")


@pytest.mark.slow
def test_importers_that_write_to_a_server_at_once_double_no_run(server: str, tmp_path: Path) -> None:
    base = server.split("/#/")[0]
    assert import_at_once(machines(tmp_path, 3, 8, "shared"), base) == [0] * 3
    found = json.loads(fetch(base + "/ajax-api/2.0/mlflow/experiments/get-by-name?experiment_name=shared"))
    query = {"experiment_ids": [found["experiment"]["experiment_id"]]}
    runs = points(json.loads(fetch(base + "/ajax-api/2.0/mlflow/runs/search", query))["runs"])
    assert sorted(run["info"]["run_name"] for run in runs) == [f"p{number:03}" for number in range(8)]
    assert {run["info"]["status"] for run in runs} == {"FINISHED"}


@pytest.mark.slow
@pytest.mark.skipif(
    postgresql_server.programs() is None, reason="needs a PostgreSQL server (Debian: apt-get install postgresql)"
)
def test_runs_in_a_postgresql_are_shown_and_the_password_is_not(tmp_path: Path) -> None:
    write_point(GridFolder(tmp_path / "results" / "tiny"))
    with postgresql_server.postgresql() as address:
        store = postgresql_server.new_database(address, "shown")
        with serving(tmp_path, MLFLOW_TRACKING_URI=store) as page:
            base, experiment = page.split("/#/")[0], re.search(r"experiments/(\d+)", page)[1]
            found = fetch(base + "/ajax-api/2.0/mlflow/runs/search", {"experiment_ids": [experiment]})
            (run,) = points(json.loads(found)["runs"])
            picture = fetch(f"{base}/get-artifact?path=masks/last.png&run_uuid={run['info']['run_id']}")
            assert picture.startswith(b"\x89PNG")
            commands = subprocess.run(["ps", "-A", "-o", "args"], capture_output=True, text=True, check=True).stdout
            assert "mlflow" in commands
            assert "sec%3Aret" not in commands
        assert "sec%3Aret" not in (tmp_path / "log").read_text()


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)")
def test_the_printed_address_opens_the_table_of_runs(server: str, tmp_path: Path) -> None:
    command = [CHROMIUM, *FLAGS.split(), f"--user-data-dir={tmp_path}", "--dump-dom", server]
    page = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout
    assert "seen.in.a.browser" in page
    assert "quality/bits_per_byte" in page
    assert "2.125" in page


def test_a_taken_port_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BlastError, match=f"port {port} cannot be used .*--port"):
            ui.prepare(tmp_path, port)


@pytest.mark.slow
def test_runs_on_a_server_are_opened_there(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = server.split("/#/")[0]
    write_point(GridFolder(tmp_path / "results" / "there"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", base)
    lines = ui.prepare(tmp_path / "results", 0)
    (line,) = [line for line in lines if line.startswith("there: ")]
    assert re.fullmatch(rf"there: {base}/#/experiments/\d+/runs\?viewStateShareKey=blast&workflowType=.*", line)
