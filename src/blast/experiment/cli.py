"""The command `blast`; each verb is a few lines around the module that does the work."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from blast.errors import STOPPED, STOPPED_CODE, BlastError
from blast.experiment.gpu_tables.commands import bench, break_even, plan_of, tune, tuned_plans
from blast.experiment.plan.paths import GridFolder


def check(options: argparse.Namespace) -> int:
    """Checks a config and says what it would run."""
    plan = plan_of(options.config)
    stages = {stage: sum(point.stage == stage for point in plan.points.values()) for stage in ("train", "benchmark")}
    print(
        f"{options.config}: good; {stages['train']} training points on {len(plan.datasets)} datasets and "
        f"{stages['benchmark']} benchmark points in {len(plan.jobs)} jobs."
    )
    if options.list:
        for name in plan.points:
            print(name)
    return 0


def list_names(options: argparse.Namespace) -> int:
    """Lists the names that a config may use, with a line about each."""
    from blast.experiment.catalogue import KINDS, catalogue

    for kind in options.kinds or KINDS:
        print(f"{kind}:")
        for name, description in catalogue(kind).items():
            print(f"  {name:<20} {description}")
    return 0


def plan(options: argparse.Namespace) -> int:
    """Writes the points of a config as files, to be run elsewhere with `blast job`."""
    from blast.files import write_json

    points = plan_of(options.config).points
    for point in points.values():
        write_json(options.out / f"{point.id}.json", point.to_dict())
    print(f"{len(points)} points written to {options.out}")
    return 0


def job(options: argparse.Namespace) -> int:
    """Runs points; always leaves a record of each."""
    from blast.experiment.plan.point import Point
    from blast.experiment.run.job import run_points

    points = [Point.read(file) for file in options.points]
    folder = GridFolder(options.out)
    failures = run_points(points, folder, options.log or folder.log(f"job-{os.getpid()}"), total=options.total)
    return 1 if failures and options.strict else 0


def fetch(options: argparse.Namespace) -> int:
    """Brings a dataset, or everything that a config needs, into the cache, and says the sizes first."""
    if options.what.endswith((".yaml", ".yml")):
        from blast.experiment.data.fetch import fetch_all

        return 1 if fetch_all(plan_of(Path(options.what)), options.sizes) else 0
    if options.out is None:
        raise BlastError("the facts of one dataset need a file: add --out FILE, or name a config.")
    from blast.experiment.data.prepare import fetch_dataset

    fetch_dataset(options.what, options.out)
    return 0


def prepare(options: argparse.Namespace) -> int:
    """Tokenises or unpacks a dataset that was fetched."""
    from blast.experiment.data.prepare import prepare_dataset

    prepare_dataset(options.dataset, json.loads(options.settings), options.fetched, options.out)
    return 0


def requests(options: argparse.Namespace) -> int:
    """Builds lm-eval's requests for a dataset."""
    from blast.experiment.data.prepare import build_dataset_requests

    build_dataset_requests(options.dataset, options.tasks, GridFolder(options.grid_dir), options.items)
    return 0


def language(options: argparse.Namespace) -> int:
    """Lets lm-eval make its metrics of the scores of points."""
    from blast.experiment.language.stage import compute_language_metrics

    compute_language_metrics(GridFolder(options.grid_dir), options.ids)
    return 0


def mlflow(options: argparse.Namespace) -> int:
    """Shows points in MLflow."""
    from blast.experiment.tracking.stage import show_in_mlflow
    from blast.files import write_atomically

    said = show_in_mlflow(GridFolder(options.grid_dir), options.ids)
    if options.out:
        write_atomically(options.out, said + "\n")
    print(said)
    return 0


def verdict(options: argparse.Namespace) -> int:
    """Says what failed and puts it aside for the next run."""
    from blast.experiment.run.verdict import settle
    from blast.files import write_atomically

    points, sentences = settle(GridFolder(options.grid_dir))
    for sentence in sentences:
        print(f"FAILED {sentence}", file=sys.stderr)
    if sentences:
        print(
            f"{len(sentences)} failures, everything else is done; mend the cause and run again: only these are redone.",
            file=sys.stderr,
        )
        return 1
    said = f"all {points} points are good"
    write_atomically(options.out, said + "\n")
    print(said)
    return 0


def export(options: argparse.Namespace) -> int:
    """Flattens records to the tables under `results/recorded`."""
    from blast.experiment.records.export import export_grid

    files = export_grid(options.grid_dir, options.recorded)
    print("written: " + (", ".join(map(str, files)) or "nothing, as there are no records"))
    return 0


def take_in(options: argparse.Namespace) -> int:
    """Takes in the records of another machine after checking their digests."""
    from blast.experiment.records.import_records import of_other_code, take_in_records, without_masks

    folder = GridFolder(options.grid_dir)
    taken = take_in_records(options.folder, folder)
    print(f"{len(taken)} records taken in from {options.folder}")
    if lost := without_masks(folder, taken):
        print(
            f"{len(lost)} of them came without their masks, the first is '{lost[0]}'; "
            "bring points/<id>/masks.safetensors too, to keep and replay them."
        )
    if others := of_other_code(folder, taken):
        print(
            f"{len(others)} of them were made by other code than is here, the first is '{others[0]}'; they can be "
            "exported and drawn, but the workflow would run them again."
        )
    return 0


def schema(options: argparse.Namespace) -> int:
    """Prints the JSON schema of a config."""
    from blast.experiment.plan.schema import schema as text

    print(text(), end="")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="blast", description="Block-sparse transformers: points, records and views of them."
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, function, **kinds) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=function.__doc__.splitlines()[0], description=function.__doc__)
        made.set_defaults(run=function)
        return made

    config = {"type": Path, "default": Path("config/config.yaml")}
    grid_dir = {"type": Path, "required": True, "help": "folder of the grid, usually results/<name>"}
    made = verb("check", check)
    made.add_argument("config", **config, nargs="?")
    made.add_argument("--list", action="store_true", help="name each point")
    made = verb("list", list_names)
    made.add_argument("kinds", nargs="*", metavar="KIND", help="architectures, datasets, methods, … (default: all)")
    made = verb("plan", plan)
    made.add_argument("config", **config, nargs="?")
    made.add_argument("--out", type=Path, required=True)
    made = verb("job", job)
    made.add_argument("points", type=Path, nargs="+", metavar="POINT.json")
    made.add_argument("--out", type=Path, required=True, help="folder that takes records and checkpoints")
    made.add_argument("--log", type=Path)
    made.add_argument("--total", type=int, help="points of the whole grid, for the progress line")
    made.add_argument("--strict", action="store_true", help="exit with 1 if a point failed")
    tuned = {"type": Path, "default": Path("kernels/tuned"), "help": "folder of the tables"}
    for name, function in (("bench", bench), ("tune", tune)):
        made = verb(name, function)
        made.add_argument("--config", type=Path, default=Path("config/h100.yaml"))
        made.add_argument("--only", default="*", metavar="PATTERN", help="ids to run, for instance '*.s95.b128.*'")
        made.add_argument("--out", type=Path, help="folder of the grid (default: results/<name>)")
        if name == "tune":
            made.add_argument("--tuned", **tuned)
            made.set_defaults(suite="kernel_plans", plan=None)
            continue
        made.add_argument("suite", help="file in src/blast/benchmark, for instance kernels")
        made.add_argument("--plan", type=Path, help="write the points as files here, in order, and run none")
    for name, function in (("break-even", break_even), ("tuned-plans", tuned_plans)):
        made = verb(name, function)
        made.add_argument("--grid-dir", **grid_dir)
        made.add_argument("--tuned", **tuned)
        if name == "break-even":
            made.add_argument("--recorded", type=Path, default=Path("results/recorded"))
    made = verb("fetch", fetch)
    made.add_argument("what", metavar="CONFIG.yaml|DATASET")
    made.add_argument("--sizes", action="store_true", help="only say what a config needs")
    made.add_argument("--out", type=Path, help="for a dataset: file that takes the facts, or why there are none")
    made = verb("prepare", prepare)
    made.add_argument("dataset")
    made.add_argument("--settings", default="{}", help="JSON")
    made.add_argument("--fetched", type=Path, help="what `blast fetch` wrote")
    made.add_argument("--out", type=Path, required=True, help="file that takes the facts, or why there are none")
    made = verb("requests", requests)
    made.add_argument("dataset")
    made.add_argument("--tasks", nargs="+", required=True)
    made.add_argument("--items", type=int, help="items of each task, the first ones (default: all)")
    made.add_argument("--grid-dir", **grid_dir)
    made = verb("language", language)
    made.add_argument("ids", nargs="+")
    made.add_argument("--grid-dir", **grid_dir)
    made = verb("mlflow", mlflow)
    made.add_argument("ids", nargs="+")
    made.add_argument("--grid-dir", **grid_dir)
    made.add_argument("--out", type=Path)
    made = verb("verdict", verdict)
    made.add_argument("--grid-dir", **grid_dir)
    made.add_argument("--out", type=Path, required=True)
    made = verb("import", take_in)
    made.add_argument("folder", type=Path, help="folder with the records of another machine")
    made.add_argument("--grid-dir", **grid_dir)
    made = verbs.add_parser("records", help="Views of records.").add_subparsers(required=True, metavar="VERB")
    made = made.add_parser("export", help=export.__doc__)
    made.set_defaults(run=export)
    made.add_argument("--grid-dir", **grid_dir)
    made.add_argument("--recorded", type=Path, default=Path("results/recorded"))
    verb("schema", schema)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Entry of the command; a fault of the user is one sentence and exit code 2."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except BlastError as error:
        print(f"blast: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        # One of our own is a fault of ours.
        if (error.name or "blast").startswith("blast"):
            raise
        print(
            f"blast: the package '{error.name}' is not installed in this environment; `make env` installs all that the "
            "workflow needs, `pip install -e '.[experiment]'` what this environment lacks.",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print(f"blast: {STOPPED}", file=sys.stderr)
        return STOPPED_CODE
