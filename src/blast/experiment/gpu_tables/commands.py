"""GPU commands of `blast`: time kernels on a GPU, and write its tables from the timings."""

from __future__ import annotations

import argparse
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from blast.errors import BlastError, unknown_name
from blast.experiment.plan.options import AddVerb, grid_option, plan_of, recorded_option
from blast.experiment.plan.paths import CHECKOUT, GridFolder, in_checkout

if TYPE_CHECKING:
    from blast.experiment.records.rows import Record


def bench(options: argparse.Namespace) -> int:
    """Runs the benchmark points of one suite of a config; points that are done are skipped.

    Example: blast bench kernels --config config/h100.yaml --only '*.s95.b128.*'
    """
    return _bench(options)[0]


def _bench(options: argparse.Namespace) -> tuple[int, GridFolder | None]:
    """The exit code, and the folder of the records; None if the points were only written as files."""
    from blast.experiment.plan.point import read_plan
    from blast.experiment.run.job import run_points
    from blast.files import write_json

    planned = plan_of(options.config).points
    timed = [point for point in planned.values() if point.stage == "benchmark"]
    points = [point for point in timed if point.benchmark["suite"] == options.suite]
    if not points:
        raise unknown_name(f"suite in {options.config}", options.suite, {p.benchmark["suite"] for p in timed})
    points = [point for point in points if fnmatchcase(point.id, options.only)]
    if not points:
        raise BlastError(f"no point of {options.suite} matches '{options.only}'; `blast check --list` lists them.")
    if options.plan:
        for number, point in enumerate(points):
            write_json(options.plan / f"{number:04d}-{point.id}.json", point.to_dict())
        print(f"{len(points)} points written to {options.plan}; run them with `python -m blast job`")
        return 0, None
    folder = GridFolder(options.out or Path("results") / points[0].grid)
    # An unchanged plan is not rewritten: the workflow looks at its date.
    if not folder.plan.is_file() or read_plan(folder.plan) != planned:
        write_json(folder.plan, [point.to_dict() for point in planned.values()])
    failures = run_points(points, folder, folder.log(f"bench-{options.suite}"), jobs=1)
    print(f"{len(points) - failures} of {len(points)} points are done; records in {folder.root / 'records'}")
    return 1 if failures else 0, folder


def tune(options: argparse.Namespace) -> int:
    """Times kernel configs on this GPU and writes the fastest into its table, which the kernels then use.

    Example: blast tune --only '*llama-3.2-1b*'
    """
    from blast.benchmark.kernel_plans import this_gpu

    this_gpu()
    code, folder = _bench(options)
    options.grid_dir = folder.root
    return write_plans(options) or code


def write_plans(options: argparse.Namespace) -> int:
    """Writes the tuned kernel configs of a GPU from the records of the suite kernel_plans of a grid.

    Example: blast tuned-plans --grid-dir results/h100
    """
    from blast.experiment.gpu_tables.tuned_configs import write_tuned_configs
    from blast.experiment.records.rows import read_grid

    file = write_tuned_configs([record for record, _ in read_grid(options.grid_dir)], options.tuned)
    print(f"written: {file}")
    return 0


def break_even(options: argparse.Namespace) -> int:
    """Writes from which sparsity ours beats dense on a GPU, from benchmarks of a grid and recorded ones of that GPU.

    Example: blast break-even --grid-dir results/h100
    """
    from blast.experiment.gpu_tables import break_even as tables

    training = _benchmarks(options.grid_dir, options.recorded, tables.TRAINING_SUITE)
    inference = _benchmarks(options.grid_dir, options.recorded, tables.INFERENCE_SUITE)
    if training:
        print(f"written: {tables.write_training_table(training, options.tuned)}")
    # Without any benchmarks, this call raises the error that says which are missing.
    if inference or not training:
        print(f"written: {tables.write_inference_table(inference, options.tuned)}")
    return 0


def _benchmarks(grid_dir: Path, recorded: Path, suite: str) -> list[Record]:
    """Benchmarks of a suite in a grid, and recorded ones of the same GPU for the points that the grid lacks."""
    from blast.experiment.records.recorded_benchmarks import recorded_benchmarks
    from blast.experiment.records.rows import read_grid

    of_grid = [record for record, _ in read_grid(grid_dir)]
    local = [record for record in of_grid if (record["point"].get("benchmark") or {}).get("suite") == suite]
    done = {record["point"]["id"] for record in local if record["status"] == "ok"}
    machines = {record["run"].get("hardware") for record in local if record["run"].get("gpu")}
    kept = recorded_benchmarks(recorded, suite) if machines else ()
    return local + [r for r in kept if r["point"]["id"] not in done and r["run"]["hardware"] in machines]


def add_verbs(verb: AddVerb) -> None:
    """Adds the GPU commands.

    Args:
        verb: Adds one verb.
    """
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
        made.add_argument("--grid-dir", **grid_option())
        made.add_argument("--tuned", **tuned)
        if name == "break-even":
            made.add_argument("--recorded", **recorded_option())
