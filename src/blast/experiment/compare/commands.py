"""The verbs that compare: `blast compare`, `blast summary`."""

from __future__ import annotations

import argparse
from pathlib import Path

from blast.errors import BlastError, unknown_name
from blast.experiment.plan.options import AddVerb, recorded_option
from blast.experiment.plan.paths import in_checkout

PAPER = "paper"


def compare(options: argparse.Namespace) -> int:
    """Shows in what two runs, grids, commits or machines differ: settings, code, and results with a paired test.

    A and B are a record file, the id of a point, a grid (`default` or its folder), a machine (a folder of
    results/recorded, or its name), or a commit. `blast compare paper` shows our results beside the paper's.

    Example: blast compare results/default results/other
    """
    if PAPER in (options.first, options.second):
        other = options.second if options.first == PAPER else options.first
        return _with_paper(options, other)
    if options.second is None:
        raise BlastError(f"'{options.first}' is compared with what? Give two: `blast compare A B`, or `paper`.")
    from blast.experiment.compare.report import compare_sides, describe
    from blast.experiment.compare.sides import find_side
    from blast.files import write_json

    found = compare_sides(find_side(options.first, options.results), find_side(options.second, options.results))
    for line in describe(found, options.all):
        print(line)
    if options.json:
        write_json(options.json, found.as_json())
    return 0


def _with_paper(options: argparse.Namespace, grid: str | None) -> int:
    from blast.experiment.analysis.judged_claims import judged
    from blast.experiment.compare.paper import describe_claims
    from blast.files import write_json

    folder = Path(grid) if grid and Path(grid).is_dir() else options.results / (grid or "default")
    if grid and not folder.is_dir():
        raise BlastError(f"{folder}: there is no such grid; give a grid that has run, or leave it out.")
    claims = judged(folder, options.recorded)
    for line in describe_claims(claims):
        print(line)
    if options.json:
        write_json(options.json, claims)
    return 0


def summary(options: argparse.Namespace) -> int:
    """Shows on one page what each sparsity costs in quality, saves in bytes, gains in time, and if it is worth it.

    GRID is a grid (`default` or its folder), or a machine (a folder of results/recorded, or its name).

    Example: blast summary results/recorded/nvidia-h200
    """
    from blast.experiment.compare.page import as_json, page
    from blast.experiment.compare.worth import summary_of
    from blast.files import write_json

    places = [Path(options.grid), options.results / options.grid, options.recorded / options.grid]
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        known = [*options.results.glob("*/records"), *options.recorded.glob("*/runs.json")]
        raise unknown_name("grid or machine", options.grid, {file.parent.name for file in known})
    found = summary_of(folder, options.recorded)
    for line in page(found, options.all):
        print(line)
    if options.json:
        write_json(options.json, as_json(found))
    return 0


def add_verbs(verb: AddVerb) -> None:
    """Adds the verbs that compare.

    Args:
        verb: Adds one verb.
    """
    made = verb("compare", compare)
    made.add_argument("first", metavar="A", help="a record file, id of a point, grid, machine or commit; or: paper")
    made.add_argument("second", metavar="B", nargs="?", help="what it is compared with; for paper: a grid")
    _common(made, "comparison")
    made = verb("summary", summary)
    made.add_argument("grid", metavar="GRID", help="a grid or a machine: its folder or its name")
    _common(made, "summary")


def _common(made: argparse.ArgumentParser, what: str) -> None:
    made.add_argument("--all", action="store_true", help="leave nothing out of long tables")
    made.add_argument("--json", type=Path, metavar="FILE", help=f"file for the whole {what}")
    made.add_argument(
        "--results", type=Path, default=in_checkout("results"), help="folder of the grids (default: results)"
    )
    made.add_argument("--recorded", **recorded_option())
