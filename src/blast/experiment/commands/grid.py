"""The verbs of a grid: check, plan, run it, and see how far it is."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from blast.errors import BlastError, unknown_name
from blast.experiment.plan.options import (
    AddVerb,
    add_config,
    config_option,
    grid_of,
    ids_option,
    point_id,
    recorded_option,
)
from blast.experiment.plan.paths import GridFolder, in_checkout


def check(options: argparse.Namespace) -> int:
    """Checks a config file and prints how many points it expands to.

    Example: blast check config/smoke.yaml --list
    """
    from blast.experiment.language.tasks_of_lm_eval import task_text

    file, _, plan, grid = grid_of(options.config, options.set, options.grid_dir)
    for dataset in plan.datasets:
        for task in plan.tasks(dataset):
            task_text(task)
    stages = {stage: sum(point.stage == stage for point in plan.points.values()) for stage in ("train", "benchmark")}
    print(
        f"{file}: valid; {stages['train']} training points on {len(plan.datasets)} datasets and "
        f"{stages['benchmark']} benchmark points in {len(plan.jobs)} jobs."
    )
    if options.list:
        for name in plan.points:
            print(name)
    if options.cost:
        from blast.experiment.language.cost import describe_cost

        for line in describe_cost(plan, grid, options.recorded):
            print(line)
    return 0


def plan(options: argparse.Namespace) -> int:
    """Tells what a config would run and why, what that costs, and what is kept; or writes its points as files.

    Example: blast plan config/smoke.yaml --set training.default.steps=80
    Example: blast plan config/config.yaml --out points
    """
    from blast.experiment.todo.outlook import describe, outlook_of
    from blast.experiment.todo.views import find_views
    from blast.files import write_json

    file, config, plan, folder = grid_of(options.config, options.set, options.grid_dir)
    if options.out:
        for point in plan.points.values():
            write_json(options.out / f"{point.id}.json", point.to_dict())
        print(f"{len(plan.points)} points written to {options.out}")
        return 0
    views = find_views(in_checkout("paper_figures/views"), Path(config.figures))
    print(f"{file}: grid '{config.name}' of {len(plan.points)} points, results in {folder.root}")
    for line in describe(outlook_of(config, plan, folder, views, options.recorded), options.list):
        print(line)
    return 0


def status(options: argparse.Namespace) -> int:
    """Tells how far a grid is: done, running, failed, stale, damaged; each failure with its cause, log and command.

    Example: blast status config/smoke.yaml
    Example: blast status results/smoke
    """
    from blast.experiment.todo.status import describe, status_of

    file, config, plan, folder = grid_of(options.config, options.set, options.grid_dir)
    found = status_of(file, plan, folder)
    runs = "it runs now" if found.process else "it does not run now"
    print(f"{file}: grid '{config.name}' of {len(plan.points)} points, results in {folder.root}; {runs}")
    for line in describe(found, options.list):
        print(line)
    return 0


def show(options: argparse.Namespace) -> int:
    """Shows one point: its settings, how far it is, what it measured, its files, and the commands for it.

    Example: blast show vit-nano.digits.dense.seed0 --config config/smoke.yaml
    """
    from blast.experiment.todo.point_page import describe

    file, _, plan, folder = grid_of(options.config, options.set, options.grid_dir)
    if options.id not in plan.points:
        raise unknown_name(f"point of {file}", options.id, plan.points)
    for line in describe(options.id, file, plan, folder):
        print(line)
    return 0


def verify(options: argparse.Namespace) -> int:
    """Compares everything of a grid with its digests, a line for each thing that is wrong; exit code 1 if there is one.

    Example: blast verify results/default
    """
    from blast.experiment.todo.verify import verify as check_all

    if not options.grid.is_dir():
        raise BlastError(f"{options.grid}: is no folder; give the folder of a grid, such as results/default.")
    folder, counts, wrong = GridFolder(options.grid), Counter[str](), 0
    drawn = Path(grid_of(options.grid).config.figures) if folder.config.is_file() else None
    for kind, file, fault in check_all(folder, drawn):
        counts[kind] += 1
        if fault:
            wrong += 1
            print(f"WRONG {kind} {file}: {fault}")
    found = ", ".join(f"{kind} {count}" for kind, count in counts.items()) or "nothing there"
    print(f"{options.grid}: {wrong or 'nothing'} {'is' if wrong < 2 else 'are'} wrong ({found})")
    return 1 if wrong else 0


def rerun(options: argparse.Namespace) -> int:
    """Runs points of a config again, with the points whose checkpoints they need and their lm-eval tasks.

    Example: blast rerun vit-nano.digits.one_shot.s95.b16.seed0 --config config/config.yaml
    """
    from blast.experiment.rerun import check_digest, with_needs
    from blast.experiment.rerun import rerun as run_again

    file, _, plan, _ = grid_of(options.config, options.set)
    points = with_needs(plan, options.ids)
    if options.digest:
        if len(options.ids) > 1:
            raise BlastError("--digest is the digest of one point; give one id, or leave it out.")
        check_digest(points[-1], options.digest, file)
    folder = GridFolder(options.out or Path("results") / "again" / points[0].grid)
    failures = run_again(plan, options.ids, folder)
    print(f"{len(points) - failures} of {len(points)} points are done; records in {folder.root / 'records'}")
    return 1 if failures else 0


def add_verbs(verb: AddVerb) -> None:
    """Adds the verbs of a grid.

    Args:
        verb: Adds one verb.
    """
    made = verb("check", check)
    add_config(made)
    made.add_argument("--list", action="store_true", help="also print the id of each point")
    made.add_argument("--cost", action="store_true", help="also print what the evaluation costs, in tokens and minutes")
    made.add_argument("--grid-dir", type=Path, help="folder of the grid, for --cost (default: results/<name>)")
    made.add_argument("--recorded", **recorded_option())
    made = verb("plan", plan)
    add_config(made, folders=True)
    made.add_argument("--list", action="store_true", help="name every point that runs")
    made.add_argument("--out", type=Path, help="write each point as a file into this folder, for `blast job`, instead")
    made.add_argument("--grid-dir", type=Path, help="folder of the grid (default: results/<name>)")
    made.add_argument("--recorded", **recorded_option())
    made = verb("status", status)
    add_config(made, folders=True)
    made.add_argument("--list", action="store_true", help="name every point, also those that are done or wait")
    made.add_argument("--grid-dir", type=Path, help="folder of the grid (default: results/<name>)")
    made = verb("show", show)
    made.add_argument("id", metavar="ID", type=point_id, help="id of a point, as `blast check --list` prints it")
    add_config(made, argument=False)
    made.add_argument(
        "--config", **config_option() | {"help": "a config file or the folder of a grid (default: config/config.yaml)"}
    )
    made.add_argument("--grid-dir", type=Path, help="folder of the grid (default: results/<name>)")
    made = verb("verify", verify)
    made.add_argument("grid", type=Path, metavar="GRID", help="folder of the grid, such as results/default")
    made = verb("rerun", rerun)
    made.add_argument("ids", **ids_option())
    made.add_argument("--config", **config_option())
    add_config(made, argument=False)
    made.add_argument("--digest", metavar="HEX", help="begin of the digest of the settings; others are refused")
    made.add_argument("--out", type=Path, help="folder for records and checkpoints (default: results/again/<grid>)")
