"""Writes what each view of a grid shows now, as digests, with which views are compared before they are drawn."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from blast.errors import BlastError
from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import read_plan
from blast.experiment.todo.views import find_views, view_keys
from blast.files import write_json

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: list[str] | None = None) -> int:
    """Writes the file; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grid-dir", type=Path, required=True)
    parser.add_argument("--recorded", type=Path, required=True)
    parser.add_argument("--out-dir", type=Path, required=True, help="folder of the pictures and tables")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    folder = GridFolder(given.grid_dir)
    try:
        views = find_views(ROOT / "paper_figures" / "views", given.out_dir)
        write_json(given.out, view_keys(views, read_plan(folder.plan), folder, given.recorded))
    except BlastError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
