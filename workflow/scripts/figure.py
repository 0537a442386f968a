"""Draws one figure: `python workflow/scripts/figure.py NAME --grid-dir results/default`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import paper_figures  # noqa: E402
from blast.errors import BlastError  # noqa: E402
from blast.experiment.command_end import ended  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    """Writes NAME.pdf and NAME.png; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="file in paper_figures/views, without .py")
    parser.add_argument("--grid-dir", type=Path, default=ROOT / "results" / "default")
    parser.add_argument("--recorded", type=Path, default=ROOT / "results" / "recorded")
    parser.add_argument("--out-dir", type=Path, default=ROOT / "paper_figures")
    given = parser.parse_args(arguments)
    try:
        if given.name not in paper_figures.figures():
            raise paper_figures.unknown_name("figure", given.name, paper_figures.figures())
        from blast.experiment.records.table import load_table
        from paper_figures.views._write import save_figure

        figure = paper_figures.load(given.name).draw(load_table(given.grid_dir, given.recorded))
        save_figure(figure, given.out_dir, given.name)
    except BlastError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    # A full disk, wherever it is noticed, is one sentence too.
    sys.exit(ended("error", main, code=1))
