"""The command `blast`. Each verb parses its options and calls the module that does the work.

The docstring of a verb is its help text: the first line says what the verb does, the rest gives an example.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blast.errors import BlastError, unknown_name
from blast.experiment.command_end import ended
from blast.experiment.gpu_tables.commands import bench, break_even, plan_of, tune, write_plans
from blast.experiment.own_model.commands import add_verbs
from blast.experiment.plan.paths import CHECKOUT, GridFolder, in_checkout
from blast.experiment.plan.point import PointId
from blast.experiment.tracking.commands import add_verbs as add_mlflow
from blast.settings import Count, Place
from blast.settings import check as check_value


def check(options: argparse.Namespace) -> int:
    """Checks a config file and prints how many points it expands to.

    Example: blast check config/smoke.yaml --list
    """
    from blast.experiment.language.tasks_of_lm_eval import task_text

    plan = plan_of(options.config)
    for dataset in plan.datasets:
        for task in plan.tasks(dataset):
            task_text(task)
    stages = {stage: sum(point.stage == stage for point in plan.points.values()) for stage in ("train", "benchmark")}
    print(
        f"{options.config}: valid; {stages['train']} training points on {len(plan.datasets)} datasets and "
        f"{stages['benchmark']} benchmark points in {len(plan.jobs)} jobs."
    )
    if options.list:
        for name in plan.points:
            print(name)
    if options.cost:
        from blast.experiment.language.cost import describe_cost

        folder = options.grid_dir or Path("results", next(iter(plan.points.values())).grid)
        for line in describe_cost(plan, GridFolder(folder), options.recorded):
            print(line)
    return 0


def list_names(options: argparse.Namespace) -> int:
    """Lists the names that a config may use, with a line about each.

    Example: blast list architectures datasets
    """
    from blast.experiment.listing import KINDS, catalogue

    for kind in options.kinds or KINDS:
        print(f"{kind}:")
        for name, description in catalogue(kind).items():
            print(f"  {name:<20} {description}")
    return 0


def plan(options: argparse.Namespace) -> int:
    """Writes the points of a config as files, so that `blast job` can run them on another machine.

    Example: blast plan config/config.yaml --out points
    """
    from blast.files import write_json

    points = plan_of(options.config).points
    for point in points.values():
        write_json(options.out / f"{point.id}.json", point.to_dict())
    print(f"{len(points)} points written to {options.out}")
    return 0


def job(options: argparse.Namespace) -> int:
    """Runs points from files, or of a plan, one a GPU side by side, and writes a record of each, also of failures.

    Example: blast job points/*.json --out away
    """
    from blast.experiment.plan.point import Point, read_plan
    from blast.experiment.run.job import run_points

    if options.plan:
        planned = read_plan(options.plan)
        if unknown := [name for name in options.points if name not in planned]:
            raise unknown_name(f"point of {options.plan}", unknown[0], planned)
        points, total = [planned[name] for name in options.points], len(planned)
    else:
        points, total = [Point.read(Path(file)) for file in options.points], options.total
    folder = GridFolder(options.out)
    log = options.log or folder.log(f"job-{os.getpid()}")
    failures = run_points(points, folder, log, total=total, own_gpus=options.own_gpus, jobs=options.jobs)
    return 1 if failures and options.strict else 0


def rerun(options: argparse.Namespace) -> int:
    """Runs points of a config again, with the points whose checkpoints they need and their lm-eval tasks.

    Example: blast rerun vit-nano.digits.one_shot.s95.b16.seed0 --config config/config.yaml
    """
    from blast.experiment.rerun import check_digest, with_needs
    from blast.experiment.rerun import rerun as run_again

    plan = plan_of(options.config)
    points = with_needs(plan, options.ids)
    if options.digest:
        if len(options.ids) > 1:
            raise BlastError("--digest is the digest of one point; give one id, or leave it out.")
        check_digest(points[-1], options.digest, options.config)
    folder = GridFolder(options.out or Path("results") / "again" / points[0].grid)
    failures = run_again(plan, options.ids, folder)
    print(f"{len(points) - failures} of {len(points)} points are done; records in {folder.root / 'records'}")
    return 1 if failures else 0


def fetch(options: argparse.Namespace) -> int:
    """Downloads one dataset, or all that a config needs, into the cache, and prints the sizes first.

    Example: blast fetch config/config.yaml --sizes
    """
    if options.what.endswith((".yaml", ".yml")):
        from blast.experiment.data.fetch import fetch_all

        return 1 if fetch_all(plan_of(Path(options.what)), options.sizes) else 0
    if options.out is None:
        raise BlastError("the facts about a dataset are written to a file; add --out FILE, or give a config file.")
    from blast.experiment.data.prepare import fetch_dataset

    fetch_dataset(options.what, options.out)
    return 0


def prepare(options: argparse.Namespace) -> int:
    """Tokenises or unpacks a dataset that was fetched.

    Example: blast prepare digits --out digits.json
    """
    from blast.experiment.data.prepare import prepare_dataset

    prepare_dataset(options.dataset, options.settings, options.fetched, options.out)
    return 0


def requests(options: argparse.Namespace) -> int:
    """Builds the evaluation requests of a prepared dataset with lm-eval.

    Example: blast requests pystdlib --tasks pystdlib_heldout --grid-dir results/default
    """
    from blast.experiment.data.prepare import build_dataset_requests

    build_dataset_requests(
        options.dataset, options.tasks, GridFolder(options.grid_dir), options.items, options.separate_test
    )
    return 0


def language(options: argparse.Namespace) -> int:
    """Computes the metrics of lm-eval from the scores of points.

    Example: blast language gpt2-nano.pystdlib.dense.seed0 --grid-dir results/default
    """
    from blast.experiment.language.stage import compute_language_metrics

    compute_language_metrics(GridFolder(options.grid_dir), options.ids)
    return 0


def agreement(options: argparse.Namespace) -> int:
    """Compares the scores of a point with those of stock lm-eval on its exported checkpoint, in float32.

    Example: blast agreement gpt2-nano.pystdlib.dense.seed0 --grid-dir results/default --items 500
    """
    from blast.experiment.language.agreement import check_agreement, describe

    folder = GridFolder(options.grid_dir)
    found = check_agreement(folder, options.id, options.items)
    for line in describe(found):
        print(line)
    print(f"written: {folder.agreement(options.id)}")
    return 0 if found["passed"] else 1


def verdict(options: argparse.Namespace) -> int:
    """Lists the points that failed and moves their records aside, so that the next run repeats them.

    Example: blast verdict --grid-dir results/default --out results/default/verdict.txt
    """
    from blast.experiment.run.verdict import judge_grid, verdict_on
    from blast.files import write_atomically

    folder = GridFolder(options.grid_dir)
    _, sentences = judge_grid(folder)
    message, bad = verdict_on(folder)
    for line in bad:
        print(line, file=sys.stderr)
    for sentence in sentences:
        print(f"FAILED {sentence}", file=sys.stderr)
    if sentences:
        print(
            f"{len(sentences)} failures, all other points are done; remove the cause and run again: "
            "only the failed points are repeated.",
            file=sys.stderr,
        )
        return 1
    write_atomically(options.out, "".join(f"{line}\n" for line in [message, *bad]))
    print(message)
    return 0


def export(options: argparse.Namespace) -> int:
    """Writes the records of a grid as CSV tables under results/recorded.

    Example: blast records export --grid-dir results/default
    """
    from blast.experiment.records.export import export_grid

    files = export_grid(options.grid_dir, options.recorded)
    folders = Counter(file.parent for file in files)
    for folder, count in sorted(folders.items()):
        print(f"written: {count} {'file' if count == 1 else 'files'} in {folder}")
    if not files:
        print("written: nothing, as there are no records")
    return 0


def import_records(options: argparse.Namespace) -> int:
    """Copies the records of another machine into a grid, after checking their digests.

    Example: blast import away --grid-dir results/default
    """
    from blast.experiment.records.import_records import import_records, of_other_code, without_masks

    folder = GridFolder(options.grid_dir)
    done = import_records(options.folder, folder, options.replace)
    imported = done.ids
    print(f"{len(imported)} records imported from {options.folder}")
    if done.known:
        print(f"{len(done.known)} of them were here before, and stay as they were.")
    if done.replaced:
        print(f"{len(done.replaced)} of them replaced other records, which are now in {folder.root / 'replaced'}.")
    if lost := without_masks(folder, imported):
        print(
            f"{len(lost)} of them came without their masks, the first is '{lost[0]}'; "
            "copy points/<id>/masks.safetensors too if the masks are to be exported and benchmarked."
        )
    if others := of_other_code(folder, imported):
        print(
            f"{len(others)} of them were made by other code than is here, the first is '{others[0]}'; they can be "
            "exported and drawn, but the workflow will run these points again."
        )
    return 0


def schema(options: argparse.Namespace) -> int:
    """Prints the JSON schema of config files, or renews the tables of keys in a page.

    Example: blast schema > config/schema.json
    """
    from blast.experiment.plan.key_tables import with_tables
    from blast.experiment.plan.schema import schema as text
    from blast.files import write_atomically

    if options.tables:
        try:
            page = options.tables.read_text(encoding="utf-8")
        except ValueError:
            raise BlastError(f"{options.tables}: this page is no text in UTF-8; give a page in Markdown.") from None
        write_atomically(options.tables, with_tables(page))
    else:
        print(text(), end="")
    return 0


def _count(text: str) -> int:
    """The value of an option that is a number of things."""
    try:
        return check_value(Count, text, Place("option"))
    except BlastError:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number of at least 1") from None


def _point_id(text: str) -> str:
    """The value of an option that is the id of a point: it names files, and leads out of no folder."""
    try:
        return check_value(PointId, text, Place("option"))
    except BlastError:
        raise argparse.ArgumentTypeError(
            f"'{text}' is no id of a point; an id has letters, digits, '_', '-', '@' and inner dots"
        ) from None


def _mapping(text: str) -> dict[str, Any]:
    """The value of an option that is a mapping in JSON."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise argparse.ArgumentTypeError(f"'{text}' is no mapping in JSON, such as '{{\"image_size\": 32}}'")
    return values


def _verb(verbs: Any, name: str, function: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
    """Adds a verb whose help text is the docstring of its function."""
    text = inspect.getdoc(function)
    style = argparse.RawDescriptionHelpFormatter
    made = verbs.add_parser(name, help=text.splitlines()[0], description=text, formatter_class=style)
    made.set_defaults(run=function)
    return made


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="blast",
        description="Prunes a language model of yours (prune, scan, generate, eval), and runs experiments with "
        "block-sparse transformers (the other verbs). A point is one training run or one benchmark.",
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, function: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        return _verb(verbs, name, function)

    add_verbs(verb)
    config = {"type": Path, "default": in_checkout("config/config.yaml"), "help": "default: config/config.yaml"}
    grid_dir = {"type": Path, "required": True, "help": "folder of the grid, such as results/default"}
    recorded = {"type": Path, "default": in_checkout("results/recorded"), "help": "default: results/recorded"}
    made = verb("check", check)
    made.add_argument("config", **config, nargs="?")
    made.add_argument("--list", action="store_true", help="also print the id of each point")
    made.add_argument("--cost", action="store_true", help="also print what the evaluation costs, in tokens and minutes")
    made.add_argument("--grid-dir", type=Path, help="folder of the grid, for --cost (default: results/<name>)")
    made.add_argument("--recorded", **recorded)
    made = verb("list", list_names)
    made.add_argument("kinds", nargs="*", metavar="KIND", help="architectures, datasets, methods, … (default: all)")
    made = verb("plan", plan)
    made.add_argument("config", **config, nargs="?")
    made.add_argument("--out", type=Path, required=True, help="folder for the files, one for each point")
    made = verb("job", job)
    made.add_argument("points", nargs="+", metavar="POINT.json|ID", help="files of points; with --plan, their ids")
    made.add_argument("--plan", type=Path, metavar="PLAN.json", help="the plan of a grid, with the points of these ids")
    made.add_argument("--out", type=Path, required=True, help="folder for records and checkpoints")
    made.add_argument("--log", type=Path, help="log file (default: OUT/logs/job-<pid>.log)")
    made.add_argument(
        "--total", type=_count, help="points in the grid, for the progress lines (default: those of the job)"
    )
    made.add_argument("--jobs", type=_count, metavar="N", help="points at once (default: one a GPU; 1 without a GPU)")
    made.add_argument(
        "--own-gpus",
        action="store_true",
        help="let each point hold a GPU alone also with --jobs 1, and let benchmarks run side by side",
    )
    made.add_argument("--strict", action="store_true", help="exit with code 1 if a point failed")
    ids = {"nargs": "+", "metavar": "ID", "type": _point_id, "help": "ids of points"}
    made = verb("rerun", rerun)
    made.add_argument("ids", **ids)
    made.add_argument("--config", **config)
    made.add_argument("--digest", metavar="HEX", help="begin of the digest of the settings; others are refused")
    made.add_argument("--out", type=Path, help="folder for records and checkpoints (default: results/again/<grid>)")
    tuned = {"type": Path, "default": CHECKOUT / "kernels" / "tuned", "help": "default: kernels/tuned of the checkout"}
    for name, function in (("bench", bench), ("tune", tune)):
        made = verb(name, function)
        made.add_argument(
            "--config", type=Path, default=in_checkout("config/h100.yaml"), help="default: config/h100.yaml"
        )
        made.add_argument("--only", default="*", metavar="PATTERN", help="ids to run, such as '*.s95.b128.*'")
        made.add_argument("--out", type=Path, help="folder of the grid (default: results/<name>)")
        if name == "tune":
            made.add_argument("--tuned", **tuned)
            made.set_defaults(suite="kernel_plans", plan=None)
            continue
        made.add_argument("suite", help="name of a suite in src/blast/benchmark, such as kernels")
        made.add_argument("--plan", type=Path, help="write the points as files into this folder and run none")
    for name, function in (("break-even", break_even), ("tuned-plans", write_plans)):
        made = verb(name, function)
        made.add_argument("--grid-dir", **grid_dir)
        made.add_argument("--tuned", **tuned)
        if name == "break-even":
            made.add_argument("--recorded", **recorded)
    made = verb("fetch", fetch)
    made.add_argument("what", metavar="CONFIG.yaml|DATASET")
    made.add_argument("--sizes", action="store_true", help="only print what a config needs; download nothing")
    made.add_argument(
        "--out", type=Path, help="for a dataset: file for the facts, or for the reason why there are none"
    )
    made = verb("prepare", prepare)
    made.add_argument("dataset")
    made.add_argument(
        "--settings", type=_mapping, default={}, metavar="JSON", help="settings of the dataset (default: {})"
    )
    made.add_argument("--fetched", type=Path, help="the file that `blast fetch` wrote")
    made.add_argument("--out", type=Path, required=True, help="file for its facts, or for the reason of a failure")
    made = verb("requests", requests)
    made.add_argument("dataset")
    made.add_argument("--tasks", nargs="+", required=True, help="names of lm-eval tasks")
    made.add_argument("--items", type=_count, help="use the first ITEMS documents of each task (default: all)")
    made.add_argument(
        "--separate-test", action="store_true", help="leave out what comes from held-out documents of even number"
    )
    made.add_argument("--grid-dir", **grid_dir)
    made = verb("language", language)
    made.add_argument("ids", **ids)
    made.add_argument("--grid-dir", **grid_dir)
    made = verb("agreement", agreement)
    made.add_argument("id", metavar="ID", type=_point_id, help="id of a point with scores")
    made.add_argument("--items", type=_count, help="compare the first ITEMS items of each task (default: all)")
    made.add_argument("--grid-dir", **grid_dir)
    add_mlflow(verb, _point_id)
    made = verb("verdict", verdict)
    made.add_argument("--grid-dir", **grid_dir)
    made.add_argument("--out", type=Path, required=True, help="file to write if no point failed")
    made = verb("import", import_records)
    made.add_argument("folder", type=Path, help="folder with the records of another machine")
    made.add_argument("--grid-dir", **grid_dir)
    made.add_argument(
        "--replace", action="store_true", help="take another record of the same point too; the old one is kept aside"
    )
    records = verbs.add_parser("records", help="Exports records: see `blast records export --help`.")
    made = _verb(records.add_subparsers(required=True, metavar="VERB"), "export", export)
    made.add_argument("--grid-dir", **grid_dir)
    made.add_argument("--recorded", **recorded)
    made = verb("schema", schema)
    made.add_argument("--tables", type=Path, metavar="PAGE", help="page to renew, usually config/README.md")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code. An error that the user can correct is one sentence and code 2."""
    return ended("blast", lambda: _run(arguments))


def _run(arguments: list[str] | None) -> int:
    options = _parser().parse_args(arguments)
    if threading.current_thread() is threading.main_thread():
        # A shell starts its background jobs with SIGINT ignored; `kill -INT` stops the command all the same.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return options.run(options)
