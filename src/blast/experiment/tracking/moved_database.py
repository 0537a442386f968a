"""Heals an sqlite database of MLflow: one whose folder was moved, and one that is damaged."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import sys
from pathlib import Path

from blast.experiment.tracking.view import DESCRIPTION
from blast.files import FileLock

# End of the path of the default database.
OWN_PLACE = ("mlflow", "mlflow.db")
_SUFFIXES = ("", "-wal", "-shm", "-journal")
# What sqlite says of a file that is no database, or no whole one.
_DAMAGED = ("not a database", "malformed", "file is encrypted")


def follow_moved_folder(database: Path) -> None:
    """Writes the new place of the artifacts into a database whose folder was moved or copied; all runs are kept.

    Experiments that are not of this suite, or whose artifacts are in a bucket for instance, stay as they are.

    Args:
        database: An sqlite database, with the artifacts in `artifacts/<experiment>` beside it.
    """
    here = (database.parent / "artifacts").as_uri()
    with contextlib.closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        found = connection.execute(
            "SELECT experiment_id, name, artifact_location FROM experiments JOIN experiment_tags USING (experiment_id) "
            "WHERE key = 'mlflow.note.content' AND value LIKE '%' || ?",
            (DESCRIPTION,),
        ).fetchall()
        for experiment, name, place in found:
            old = (place or "").removesuffix(_ending(name))
            if old in (place, here) or not old.startswith("file:") or not old.endswith("/artifacts"):
                continue
            connection.execute(
                "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?",
                (here + _ending(name), experiment),
            )
            connection.execute(
                "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) "
                "WHERE experiment_id = ? AND substr(artifact_uri, 1, ?) = ?",
                (here, len(old) + 1, experiment, len(old) + 1, old + "/"),
            )


def _ending(name: str) -> str:
    """The end of the artifact address of an experiment."""
    return (Path("/") / name).as_uri().removeprefix("file://")


def set_aside_if_damaged(database: Path) -> Path | None:
    """Renames a damaged database to `<name>.damaged-<number>`, with the files that sqlite keeps beside it.

    Returns:
        The new name; None if the database is whole or missing.

    Raises:
        OSError: if the folder cannot be written.
    """
    if not _is_damaged(database):
        return None
    # Another process may have put it aside since, and made a new one.
    with FileLock(database.with_name(f"{database.name}.lock")):
        if not _is_damaged(database):
            return None
        names = (database.with_name(f"{database.name}.damaged-{number}") for number in itertools.count(1))
        aside = next(name for name in names if not name.exists())
        for suffix in reversed(_SUFFIXES):
            with contextlib.suppress(FileNotFoundError):
                Path(f"{database}{suffix}").rename(f"{aside}{suffix}")
    print(
        f"{database}: this MLflow database is damaged, so it was renamed to {aside.name} and is made again from the "
        "records; `make ui` imports all of them.",
        file=sys.stderr,
    )
    return aside


def _is_damaged(database: Path) -> bool:
    """Whether a file is no database; only the suite's own place is looked at, as other files are not ours to rename."""
    if database.parts[-2:] != OWN_PLACE or not database.exists():
        return False
    if not database.stat().st_size:
        return True
    try:
        # Read-only, so that a look never makes a file.
        with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=60)) as connection:
            connection.execute("SELECT count(*) FROM experiments").fetchone()
    except sqlite3.DatabaseError as error:
        return any(words in str(error) for words in _DAMAGED)
    return False
