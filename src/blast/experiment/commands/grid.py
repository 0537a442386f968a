"""The verbs of a grid: check, plan, run it, and see how far it is."""

from __future__ import annotations

import argparse
from pathlib import Path

from blast.errors import BlastError
from blast.experiment.plan.options import AddVerb, config_option, ids_option, plan_of, recorded_option
from blast.experiment.plan.paths import GridFolder


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


def add_verbs(verb: AddVerb) -> None:
    """Adds the verbs of a grid.

    Args:
        verb: Adds one verb.
    """
    made = verb("check", check)
    made.add_argument("config", **config_option(), nargs="?")
    made.add_argument("--list", action="store_true", help="also print the id of each point")
    made.add_argument("--cost", action="store_true", help="also print what the evaluation costs, in tokens and minutes")
    made.add_argument("--grid-dir", type=Path, help="folder of the grid, for --cost (default: results/<name>)")
    made.add_argument("--recorded", **recorded_option())
    made = verb("plan", plan)
    made.add_argument("config", **config_option(), nargs="?")
    made.add_argument("--out", type=Path, required=True, help="folder for the files, one for each point")
    made = verb("rerun", rerun)
    made.add_argument("ids", **ids_option())
    made.add_argument("--config", **config_option())
    made.add_argument("--digest", metavar="HEX", help="begin of the digest of the settings; others are refused")
    made.add_argument("--out", type=Path, help="folder for records and checkpoints (default: results/again/<grid>)")
