"""The verb `mlflow`.

The docstring of a verb is its help text: the first line says what the verb does, the rest gives an example.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path

from blast.errors import BlastError
from blast.experiment.plan.options import AddVerb, grid_option, point_id
from blast.experiment.plan.paths import GridFolder


def mlflow(options: argparse.Namespace) -> int:
    """Imports the records of points into MLflow, streams points while they train, or registers a model.

    Example: blast mlflow gpt2-nano.pystdlib.dense.seed0 --grid-dir results/default
    """
    folder = GridFolder(options.grid_dir)
    if options.follow:
        return _follow(folder)
    if options.register is not None and len(options.ids) != 1:
        raise BlastError("--register NAME registers one model; give the id of one point after the name.")
    if not options.ids:
        raise BlastError("give the ids of points to import, or --follow for those that train now.")
    if not any(folder.record(name).is_file() for name in options.ids):
        raise BlastError(f"{folder.record(options.ids[0])}: this record does not exist; check the id and --grid-dir.")
    code = _import(folder, options)
    return code if code or options.register is None else _register(folder, options.ids[0], options.register)


def _import(folder: GridFolder, options: argparse.Namespace) -> int:
    from blast.experiment.records.record import read_record
    from blast.experiment.run.verdict import NOT_IMPORTED
    from blast.experiment.tracking.imports import Imports, tracking_store
    from blast.experiment.tracking.stage import import_into_mlflow
    from blast.files import write_atomically

    message = import_into_mlflow(folder, options.ids)
    if not message.startswith(NOT_IMPORTED):
        files = [folder.record(name) for name in options.ids]
        Imports(folder, tracking_store()).add([read_record(file) for file in files if file.is_file()])
    if options.out:
        write_atomically(options.out, message + "\n")
    failed = message.startswith(NOT_IMPORTED)
    print(message, file=sys.stderr if failed else sys.stdout)
    return 1 if failed and not options.out else 0


def _register(folder: GridFolder, point: str, name: str) -> int:
    from blast.experiment.records.record import read_record
    from blast.experiment.tracking.experiments import Experiments
    from blast.experiment.tracking.model_artifact import register
    from blast.experiment.tracking.one_run import runs_of_point
    from blast.experiment.tracking.store import open_client, tracking_uri
    from blast.experiment.tracking.store_errors import shown, store_errors

    record, results = read_record(folder.record(point)), folder.root.absolute().parent
    uri = tracking_uri(results)
    client = open_client(uri)
    with store_errors(uri):
        experiment = Experiments(client, uri, results).of(record["point"])
        runs = runs_of_point(client, experiment.id, point)
        (run,) = [run for run in runs if run.data.tags.get("record_digest") == record["record_digest"]]
        version = register(client, run.info.run_id, name, record, folder)
    print(f"registered: {name} version {version} ({shown(uri)}); load it with")
    print(f'  mlflow.pyfunc.load_model("models:/{name}/{version}")')
    return 0


def _follow(folder: GridFolder) -> int:
    from blast.experiment.tracking.stream import follow

    if not folder.root.is_dir():
        raise BlastError(f"{folder.root}: this folder does not exist; give the folder that `blast job` writes to.")
    end = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: end.set())
    print(f"streaming what trains in {folder.root}; Ctrl-C ends it", flush=True)
    signal.signal(signal.SIGINT, lambda *_: end.set())
    follow(folder, [], end.wait, lambda line: print(line, file=sys.stderr, flush=True))
    return 0


def add_verbs(verb: AddVerb) -> None:
    """Adds the verb of this room.

    Args:
        verb: Adds a verb of a name and a function.
    """
    made = verb("mlflow", mlflow)
    made.add_argument("ids", nargs="*", metavar="ID", type=point_id, help="ids of points")
    made.add_argument("--grid-dir", **grid_option())
    made.add_argument("--follow", action="store_true", help="stream the points that train now, until Ctrl-C")
    made.add_argument("--register", metavar="NAME", help="register the model of the point under this name")
    made.add_argument(
        "--out", type=Path, help="file for the printed line, which `blast verdict` reads: with it, the exit code is 0"
    )
