"""Access to an MLflow store: its address, the client, the lock, and the creation of a new database."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from blast.errors import BlastError
from blast.files import file_lock, replacing, text_digest

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Set before MLflow is imported; values set by the user stay. Two attempts of 4 s: a dead server is reported in 10 s.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "4",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}
_LOCK_PATIENCE = 600.0  # s; a thousand runs take about three minutes


def tracking_uri(results: Path, given: str | None = None) -> str:
    """Address of the store: the given one, else `MLFLOW_TRACKING_URI`, else a database under `results/mlflow`.

    A relative sqlite path is resolved against the working directory.

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


@contextlib.contextmanager
def import_lock(uri: str) -> Iterator[None]:
    """Lets only one process of this machine write to a store. The lock ends with the process, even if it is killed.

    Raises:
        BlastError: if another process holds it for more than ten minutes, or the folder cannot be written.
    """
    database = database_file(uri)
    if database:
        file = database.with_name(f"{database.name}.lock")
    else:
        name = text_digest(uri).removeprefix("sha256:")[:16]
        file = Path(tempfile.gettempdir()) / f"blast-mlflow-{os.getuid()}-{name}.lock"
    try:
        lock = file_lock(file)
        lock.acquire(timeout=_LOCK_PATIENCE)
    except TimeoutError:
        raise BlastError(
            f"{file}: another import has held this lock for 10 minutes; stop it and import again."
        ) from None
    except OSError as error:
        raise BlastError(
            f"{file}: cannot be written ({error.strerror}); change the permissions and import again."
        ) from error
    try:
        yield
    finally:
        lock.release()


def make_quiet() -> None:
    """Turns off MLflow's telemetry, log messages and long waits; call it before the first `import mlflow`."""
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    for name in ("alembic", "mlflow", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.ERROR)


def open_client(uri: str) -> MlflowClient:
    """A client of a store that answers. A missing sqlite database is created. Call it under `import_lock`.

    Raises:
        BlastError: if a server does not answer or a database cannot be used.
    """
    make_quiet()
    with store_errors(uri):
        from mlflow import MlflowClient

        database = database_file(uri)
        if database:
            _check_installed_path()
        if database and not database.exists():
            _create_database(database)
        client = MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
        return client


@contextlib.contextmanager
def store_errors(uri: str) -> Iterator[None]:
    """Turns errors of MLflow, its HTTP library and its database into a `BlastError`."""
    import sqlalchemy.exc
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (
        MlflowException,
        OSError,
        sqlalchemy.exc.SQLAlchemyError,
        sqlite3.Error,
    ) as error:
        if uri.startswith(("http://", "https://")):
            problem = f"the MLflow server {uri} did not accept the runs"
            remedy = "start it or set MLFLOW_TRACKING_URI"
        elif database := database_file(uri):
            problem = f"{database}: the MLflow database cannot be used"
            remedy = "move the file away (it is made again from the records)"
        else:
            problem = f"the MLflow store '{uri}' cannot be used"
            remedy = "set MLFLOW_TRACKING_URI to sqlite:///… or http://…"
        problem += f" ({_reason(error)})"
        raise BlastError(f"{problem}; {remedy}, then import again: the records are unchanged.") from error


def _reason(error: BaseException) -> str:
    text = str(error)
    for sign, reason in (
        ("refused", "connection refused"),
        ("timed out", "no answer in time"),
        ("resolve", "unknown host"),
        ("unreachable", "host unreachable"),
        ("No route", "host unreachable"),
    ):
        if sign in text:
            return reason
    line = (text.splitlines() or [type(error).__name__])[0].strip().rstrip(".")
    return line if len(line) <= 160 else line[:157] + "…"


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


def _create_database(file: Path) -> None:
    """Creates an empty database under another name and renames it. WAL mode lets the UI read during an import."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with replacing(file, alone=True) as temporary:
        for left in (temporary, *(Path(f"{temporary}-{part}") for part in ("wal", "shm", "journal"))):
            left.unlink(missing_ok=True)
        store = SqlAlchemyStore(f"sqlite:///{temporary}", (file.parent / "artifacts").as_uri())
        # MLflow creates an empty experiment "Default", easily confused with the grid "default".
        store.delete_experiment(str(SqlAlchemyStore.DEFAULT_EXPERIMENT_ID))
        store.engine.dispose()
        with contextlib.closing(sqlite3.connect(temporary)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
