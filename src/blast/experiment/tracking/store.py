"""Access to an MLflow store: its address, its client, and where its artifacts are."""

from __future__ import annotations

import functools
import logging
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from blast.errors import BlastError
from blast.experiment.tracking.database import new_database, new_tables
from blast.experiment.tracking.moved_database import follow_moved_folder, set_aside_if_damaged
from blast.experiment.tracking.store_errors import is_momentary, store_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Set before MLflow is imported; values set by the user stay. Two attempts of 4 s: a dead server is reported in 10 s.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "4",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}
_PATIENCE = 60.0  # s, how long a request is repeated while other importers hold what it needs
_SHORTEST, _LONGEST = 0.02, 1.0  # s, between two attempts


def tracking_uri(results: Path, given: str | None = None) -> str:
    """Address of the store: the given one, else `MLFLOW_TRACKING_URI`, else a database under `results/mlflow`.

    A relative sqlite path is resolved against the working directory. An address of PostgreSQL that names no driver gets
    psycopg 3, which is in the lock file, and UTF-8.

    Raises:
        BlastError: if the path of `results` holds a question mark, which would end the path in the address.
    """
    uri = given or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        file = Path(results).resolve() / "mlflow" / "mlflow.db"
        if "?" in str(file):
            raise BlastError(
                f"{file}: MLflow takes no path with a question mark; rename the folder, or set MLFLOW_TRACKING_URI."
            )
        uri = f"sqlite:///{file}"
    for scheme in ("postgresql://", "postgres://"):
        if uri.startswith(scheme):
            uri = "postgresql+psycopg://" + uri.removeprefix(scheme)
    if uri.startswith("postgresql+psycopg://") and "client_encoding=" not in uri:
        # A cluster made in the locale C has no encoding, and psycopg would return bytes.
        return f"{uri}{'&' if '?' in uri else '?'}client_encoding=utf8"
    file = database_file(uri)
    return f"sqlite:///{file}" if file and "?" not in uri else uri


def database_file(uri: str) -> Path | None:
    """The file of an sqlite address; None for any other store."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(uri.removeprefix("sqlite:///").split("?")[0]).resolve()


def artifact_location(uri: str, results: Path, experiment: str) -> str | None:
    """Folder for the artifacts of an experiment as a `file://` address; None if a server decides."""
    if uri.startswith(("http://", "https://")):
        return None
    file = database_file(uri)
    root = file.parent if file else Path(results).resolve() / "mlflow"
    return (root / "artifacts" / experiment).as_uri()


def make_quiet() -> None:
    """Turns off MLflow's telemetry, log messages and long waits; call it before the first `import mlflow`."""
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    for name in ("alembic", "mlflow", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def open_client(uri: str) -> MlflowClient:
    """A client of a store that answers.

    A missing sqlite database and the tables of an empty PostgreSQL are made; any number of processes may do this at
    once. A damaged sqlite database is put aside and made anew. One whose folder was moved is told its new place.

    Raises:
        BlastError: if a server does not answer or a database cannot be used.
    """
    make_quiet()
    with store_errors(uri):
        from mlflow import MlflowClient

        database = database_file(uri)
        if database:
            _check_installed_path()
            set_aside_if_damaged(database)
            if not database.exists():
                new_database(database)
            follow_moved_folder(database)
        elif uri.startswith("postgresql"):
            new_tables(uri)
        client = cast("MlflowClient", _Patient(MlflowClient(tracking_uri=uri)))
        client.search_experiments(max_results=1)
        return client


class _Patient:
    """A client that repeats a request which failed because another importer wrote at the same moment.

    Each request of the importer may be sent twice: a run that was made twice is one candidate more, see `one_run`.
    """

    def __init__(self, client: MlflowClient) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        return functools.partial(_repeated, method) if callable(method) else method


def _repeated(method: Callable[..., Any], *given: Any, **named: Any) -> Any:
    import sqlalchemy.exc
    from mlflow.exceptions import MlflowException

    end, pause = time.monotonic() + _PATIENCE, _SHORTEST
    while True:
        try:
            return method(*given, **named)
        except (MlflowException, sqlalchemy.exc.SQLAlchemyError) as error:
            if not is_momentary(error) or time.monotonic() > end:
                raise
        time.sleep(pause * (0.5 + random.random()))
        pause = min(2 * pause, _LONGEST)


def _check_installed_path() -> None:
    """Refuses an MLflow in a folder with a percent sign, which the library that makes its tables takes for a variable.

    Raises:
        BlastError: if the path holds one.
    """
    import mlflow

    folder = Path(mlflow.__file__).parent
    if "%" in str(folder):
        raise BlastError(
            f"{folder}: MLflow makes no database if its own path holds a percent sign; rename the folder of the "
            "environment, or set MLFLOW_TRACKING_URI to a server."
        )
