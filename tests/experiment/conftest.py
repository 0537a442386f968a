"""A grid folder with an MLflow database of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from blast.experiment.plan.paths import GridFolder
from blast.experiment.tracking.store import open_client


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new database; tests that are not about making one start from a copy, which saves seconds."""
    file = tmp_path_factory.mktemp("database") / "mlflow.db"
    open_client(f"sqlite:///{file}")
    return file


@pytest.fixture
def mlflow_folder(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> GridFolder:
    """An empty grid folder with an empty database where the default one is."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    database = tmp_path / "results dir" / "mlflow" / "mlflow.db"
    database.parent.mkdir(parents=True)
    shutil.copy(empty_database, database)
    return GridFolder(tmp_path / "results dir" / "tiny")
