"""Errors of MLflow stores as one sentence each, with what to do."""

from __future__ import annotations

import contextlib
import re
import shlex
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

from blast.errors import BlastError

# What a database says where it only has to be asked again, in small letters.
_MOMENTARY = (
    *("database is locked", "database table is locked", "deadlock", "could not serialize", "restart transaction"),
    *("unique constraint", "duplicate key", "duplicate entry", "closed the connection unexpectedly"),
    *("terminating connection", "connection is closed", "too many clients", "in recovery mode", "starting up"),
)
_REASONS = (
    ("refused", "connection refused"),
    ("timed out", "no answer in time"),
    ("timeout expired", "no answer in time"),
    ("resolve", "unknown host"),
    ("unreachable", "host unreachable"),
    ("No route", "host unreachable"),
)
# What a full or read-only disk makes sqlite and the system say, in small letters, and what to do.
_DISK = (
    (("disk is full", "no space left", "disk quota", "file too large"), "free some space"),
    (
        ("readonly database", "read-only", "permission denied", "unable to open database file"),
        "make its folder writable (`chmod -R u+w`, or mount it so), or set MLFLOW_TRACKING_URI",
    ),
)
# Drivers of databases, and what to give to pip for each.
_DRIVERS = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "pymysql": "pymysql", "MySQLdb": "mysqlclient"}


def shown(uri: str) -> str:
    """An address without its password, for messages."""
    return re.sub(r"(://[^:/@?]*):[^@/]*@", r"\1:***@", uri)


def is_momentary(error: BaseException) -> bool:
    """Whether an error ends by itself, such as a lock that another importer holds at this moment."""
    if getattr(error, "error_code", None) == "RESOURCE_ALREADY_EXISTS":
        return False
    said = str(error).lower()
    return any(words in said for words in _MOMENTARY)


@contextlib.contextmanager
def store_errors(uri: str) -> Iterator[None]:
    """Turns errors of MLflow, its HTTP library, its database and its driver into a `BlastError`."""
    import sqlalchemy.exc
    from mlflow.exceptions import MlflowException

    try:
        yield
    except ImportError as error:
        package = (error.name or "").split(".")[0]
        if package not in _DRIVERS:
            raise
        pip = f"{shlex.quote(sys.executable)} -m pip install {shlex.quote(_DRIVERS[package])}"
        raise BlastError(
            f"the database {shown(uri)} needs the package '{package}', which is not installed; run `{pip}`, then "
            "import again: the records are unchanged."
        ) from error
    except (MlflowException, OSError, sqlalchemy.exc.SQLAlchemyError, sqlite3.Error) as error:
        problem, remedy = _described(uri, str(error))
        raise BlastError(
            f"{problem} ({_reason(error)}); {remedy}, then import again: the records are unchanged."
        ) from error


def _described(uri: str, said: str) -> tuple[str, str]:
    """What cannot be used, and what to do about it."""
    if uri.startswith(("http://", "https://")):
        return f"the MLflow server {shown(uri)} did not accept the runs", "start it or set MLFLOW_TRACKING_URI"
    sqlite = uri.startswith("sqlite:///")
    for signs, remedy in _DISK:
        if any(sign in said.lower() for sign in signs):
            place = Path(uri.removeprefix("sqlite:///").split("?")[0]).resolve().parent if sqlite else shown(uri)
            return f"{place}: MLflow cannot write here", remedy
    if sqlite:
        file = uri.removeprefix("sqlite:///").split("?")[0]
        return (
            f"{file}: the MLflow database cannot be used",
            "move its folder away (it is made again from the records)",
        )
    if uri.startswith("postgresql"):
        return (
            f"the database {shown(uri)} cannot be used",
            "start it, or correct MLFLOW_TRACKING_URI (postgresql://USER:PASSWORD@HOST:5432/DATABASE)",
        )
    return f"the MLflow store '{shown(uri)}' cannot be used", "set MLFLOW_TRACKING_URI to sqlite:///… or http://…"


def _reason(error: BaseException) -> str:
    text = shown(str(error))
    for sign, reason in _REASONS:
        if sign in text:
            return reason
    line = (text.splitlines() or [type(error).__name__])[0].strip().rstrip(".")
    line = re.sub(r"^\([\w.]+\) ", "", line)  # the class of the driver's error
    return line if len(line) <= 160 else line[:157] + "…"
