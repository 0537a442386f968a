"""The verbs that run points on other machines, and take in what they measured."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from pathlib import Path

from blast.errors import unknown_name
from blast.experiment.plan.options import AddVerb, count, grid_option, recorded_option
from blast.experiment.plan.paths import GridFolder


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
    failures = run_points(
        points, folder, log, total=total, own_gpus=options.own_gpus, jobs=options.jobs, attempt=options.attempt
    )
    return 1 if failures and options.strict else 0


def import_records(options: argparse.Namespace) -> int:
    """Copies the records of another machine into a grid, from a folder or a bundle, after checking their digests.

    Example: blast import away --grid-dir results/default
    """
    from blast.experiment.records.import_records import of_other_code, without_masks
    from blast.experiment.share.unpack import import_from

    folder = GridFolder(options.grid_dir)
    done = import_from(options.folder, folder, options.replace, options.digest)
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


def export(options: argparse.Namespace) -> int:
    """Writes the records of a grid as CSV tables under results/recorded.

    Example: blast records export --grid-dir results/default
    """
    from blast.experiment.records.export import export_grid

    files = export_grid(options.grid_dir, options.recorded)
    folders = Counter(file.parent for file in files)
    for folder, written in sorted(folders.items()):
        print(f"written: {written} {'file' if written == 1 else 'files'} in {folder}")
    if not files:
        print("written: nothing, as there are no records")
    return 0


def add_verbs(verb: AddVerb) -> None:
    """Adds the verbs for work on several machines.

    Args:
        verb: Adds one verb.
    """
    made = verb("job", job)
    made.add_argument("points", nargs="+", metavar="POINT.json|ID", help="files of points; with --plan, their ids")
    made.add_argument("--plan", type=Path, metavar="PLAN.json", help="the plan of a grid, with the points of these ids")
    made.add_argument("--out", type=Path, required=True, help="folder for records and checkpoints")
    made.add_argument("--log", type=Path, help="log file (default: OUT/logs/job-<pid>.log)")
    made.add_argument(
        "--total", type=count, help="points in the grid, for the progress lines (default: those of the job)"
    )
    made.add_argument("--jobs", type=count, metavar="N", help="points at once (default: one a GPU; 1 without a GPU)")
    made.add_argument(
        "--own-gpus",
        action="store_true",
        help="let each point hold a GPU alone also with --jobs 1, and let benchmarks run side by side",
    )
    made.add_argument("--strict", action="store_true", help="exit with code 1 if a point failed")
    made.add_argument("--attempt", type=count, default=1, metavar="N", help="N-th attempt: fail if none comes further")
    made = verb("import", import_records)
    made.add_argument("folder", type=Path, help="folder with the records of another machine, or a bundle")
    made.add_argument("--grid-dir", **grid_option())
    made.add_argument(
        "--replace", action="store_true", help="take another record of the same point too; the old one is kept aside"
    )
    made.add_argument(
        "--digest", metavar="HEX", help="begin of the digest that `blast export` printed; others are refused"
    )
    made = verb("records export", export)
    made.add_argument("--grid-dir", **grid_option())
    made.add_argument("--recorded", **recorded_option())
