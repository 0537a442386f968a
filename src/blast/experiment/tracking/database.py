"""Makes the database of an MLflow store. Any number of processes may do this at once; one of them makes it."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
from pathlib import Path

# Number of the lock on an empty PostgreSQL while its tables are made. It ends with the connection of its holder.
_TABLES_LOCK = 0x426C615354
_CONNECT_SECONDS = 4


def new_database(file: Path) -> None:
    """Makes an empty sqlite database; nothing if there is one.

    It is made under a name of its own, and a link gives it its place. A link never replaces a file, so the database
    of the process that comes first stays.

    Raises:
        OSError: if the folder cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=file.parent) as folder:
        made = Path(folder) / file.name
        _make_tables(f"sqlite:///{made}", (file.parent / "artifacts").as_uri())
        with contextlib.closing(sqlite3.connect(made)) as connection:
            # The pages can be read during an import.
            connection.execute("PRAGMA journal_mode=WAL")
        try:
            os.link(made, file)
        except FileExistsError:
            return
        except OSError:
            # A file system without links; `rename` would replace the database of another process.
            with contextlib.suppress(FileExistsError), file.open("xb") as handle:
                handle.write(made.read_bytes())


def new_tables(uri: str) -> None:
    """Makes the tables of MLflow in an empty PostgreSQL; nothing if they are there.

    MLflow's own lock is a file, so two machines would make them at once. This one is in the database.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: if the database does not answer within four seconds.
    """
    import sqlalchemy

    engine = sqlalchemy.create_engine(
        uri, poolclass=sqlalchemy.NullPool, connect_args={"connect_timeout": _CONNECT_SECONDS}
    )
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:number)"), {"number": _TABLES_LOCK})
        inspector = sqlalchemy.inspect(connection)
        # MLflow writes its version last; a process that was killed before leaves some of the tables.
        whole = inspector.has_table("experiments") and inspector.has_table("alembic_version")
        # The lock belongs to the connection, and an open transaction would only hold up others.
        connection.commit()
        if not whole:
            _make_tables(uri, "mlflow-artifacts:/")


def _make_tables(uri: str, artifacts: str) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore(uri, artifacts)
    # MLflow creates an empty experiment "Default", easily confused with the grid "default".
    store.delete_experiment(str(SqlAlchemyStore.DEFAULT_EXPERIMENT_ID))
    store.engine.dispose()
