"""MLflow's web pages: imports all records, prints the addresses, and serves on this machine only.

python -m blast.experiment.tracking.ui [--results results] [--port 5000]
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path

from blast.errors import BlastError
from blast.experiment.command_end import ended
from blast.experiment.tracking.importer import import_grid
from blast.experiment.tracking.links import WORKFLOW
from blast.experiment.tracking.store import database_file, open_client, tracking_uri
from blast.experiment.tracking.store_errors import shown
from blast.experiment.tracking.view import VIEW

# One worker and no job runner need a tenth of the memory of MLflow's defaults. MLflow itself causes the warnings.
_ENVIRONMENT = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PYTHONWARNINGS": "ignore::DeprecationWarning"}


def server_command(artifacts: Path, port: int) -> list[str]:
    """The command that serves the store of `MLFLOW_BACKEND_STORE_URI` on 127.0.0.1.

    The store is not in the command, which every user of the machine can read: its address may hold a password.
    """
    return [
        *(sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--artifacts-destination", str(artifacts)),
    ]


def page(server: str, experiment_id: str) -> str:
    """Address of the run table of an experiment. The plain address opens MLflow's pages for language-model traces."""
    query = f"viewStateShareKey={VIEW}&{WORKFLOW}"
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs?{query}"


def is_server(uri: str) -> bool:
    """Whether an address of a store is that of an MLflow server, which has pages of its own."""
    return uri.startswith(("http://", "https://"))


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise BlastError(f"port {port} cannot be used ({error}); choose another one with --port.") from error


def prepare(results: Path, port: int) -> list[str]:
    """Imports all grids under `results` and returns one line for each experiment, with the address of its runs.

    Where `MLFLOW_TRACKING_URI` names a server, these are pages of that server.

    Raises:
        BlastError: if there is no such folder, the port is taken, or the store cannot be used.
    """
    if not Path(results).is_dir():
        raise BlastError(f"{results}: this folder of results does not exist; name another one with --results.")
    uri = tracking_uri(results)
    if not is_server(uri):
        _check_port(port)
    for records in sorted(Path(results).glob("*/records")):
        summary = import_grid(records.parent)
        for fault in summary.faults:
            print(fault, file=sys.stderr)
    found = open_client(uri).search_experiments()
    server = shown(uri) if is_server(uri) else f"http://127.0.0.1:{port}"
    return [f"{experiment.name}: {page(server, experiment.experiment_id)}" for experiment in found]


def main(arguments: list[str] | None = None) -> int:
    """Serves until interrupted. Returns 1 if it cannot start."""
    parser = argparse.ArgumentParser(
        prog="python -m blast.experiment.tracking.ui", description="Serves MLflow's pages for all grids."
    )
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the grids (default: results)")
    parser.add_argument("--port", type=int, default=5000, help="port on 127.0.0.1 (default: 5000)")
    return ended("blast", lambda: _serve(parser.parse_args(arguments)), code=1)


def _serve(given: argparse.Namespace) -> int:
    lines = prepare(given.results, given.port)
    print("\n".join(lines) or "No records yet. Runs appear as points finish.")
    uri = tracking_uri(given.results)
    if is_server(uri):
        return 0
    print("Runs are under 'Model training' (top left; the browser remembers it). Ctrl-C stops the server.", flush=True)
    database = database_file(uri)
    os.environ.update({key: os.environ.get(key, value) for key, value in _ENVIRONMENT.items()})
    os.environ["MLFLOW_BACKEND_STORE_URI"] = uri
    command = server_command((database.parent if database else given.results / "mlflow") / "artifacts", given.port)
    os.execv(command[0], command)


if __name__ == "__main__":
    sys.exit(main())
