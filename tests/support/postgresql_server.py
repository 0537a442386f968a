"""A real PostgreSQL on loopback for tests: a cluster in a temporary folder, on a free port, stopped at the end."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from patience import PATIENCE


def programs() -> Path | None:
    """The folder with `initdb` and `postgres`; None if there is no PostgreSQL server on this machine."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists() and (folder / "postgres").exists()), None)


def _account() -> dict[str, int]:
    """PostgreSQL does not run as root: the options of `subprocess` for its own user, or for nobody."""
    if os.getuid():
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid}
    raise LookupError("there is no user 'postgres' nor 'nobody', and root may not run PostgreSQL")


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """Runs a server and yields its address with user and password, but without a database: `postgresql://…:PORT/`."""
    found, account = programs(), _account()
    if found is None:
        raise LookupError("there is no PostgreSQL server; Debian: apt-get install postgresql")
    with tempfile.TemporaryDirectory(prefix="blast-postgresql-", ignore_cleanup_errors=True) as folder:
        root = Path(folder)
        (root / "password").write_text("sec:ret")
        for path in (root, root / "password"):
            path.chmod(0o700)
            if account:
                os.chown(path, account["user"], account["group"])
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        here = {"cwd": root, "env": {"PATH": os.environ["PATH"], "LC_ALL": "C", "TZ": "UTC"}, **account}
        subprocess.run(
            [
                found / "initdb",
                "-D",
                root / "data",
                "-U",
                "tester",
                "-A",
                "scram-sha-256",
                "--pwfile",
                root / "password",
            ],
            check=True,
            capture_output=True,
            **here,
        )
        # No fsync: the cluster is thrown away, and what is tested does not crash the machine.
        options = ["-c", "listen_addresses=127.0.0.1", "-c", f"port={port}", "-c", f"unix_socket_directories={root}"]
        options += ["-c", "fsync=off", "-c", "max_connections=60"]
        with (root / "log").open("w") as log:
            server = subprocess.Popen(
                [found / "postgres", "-D", root / "data", *options], stderr=log, stdout=log, **here
            )
        try:
            ready = [found / "pg_isready", "-h", "127.0.0.1", "-p", str(port), "-q"]
            for _ in range(600):
                if subprocess.run(ready, **here).returncode == 0:
                    break
                if server.poll() is not None:
                    break
                subprocess.run(["sleep", "0.1"], check=True)
            if server.poll() is not None:
                raise RuntimeError((root / "log").read_text())
            yield f"postgresql://tester:sec%3Aret@127.0.0.1:{port}/"
        finally:
            # SIGTERM would wait for clients, which MLflow keeps connected.
            server.send_signal(signal.SIGINT)
            try:
                server.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait(PATIENCE)


def new_database(server: str, name: str) -> str:
    """Makes an empty database on a server and returns its address."""
    import psycopg

    with psycopg.connect(server + "postgres", autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return server + name
