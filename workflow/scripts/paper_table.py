"""Makes one table: `python workflow/scripts/paper_table.py NAME --grid-dir results/default`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import paper_figures  # noqa: E402
from blast.errors import BlastError  # noqa: E402
from blast.experiment.command_end import ended  # noqa: E402
from blast.experiment.plan.paths import GridFolder  # noqa: E402
from blast.experiment.todo.views import note_drawn  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    """Writes NAME.csv, NAME.md and NAME.tex; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="file in paper_figures/views, without .py")
    parser.add_argument("--grid-dir", type=Path, default=ROOT / "results" / "default")
    parser.add_argument("--recorded", type=Path, default=ROOT / "results" / "recorded")
    parser.add_argument("--out-dir", type=Path, default=ROOT / "paper_figures")
    parser.add_argument("--keys", type=Path, help="what views show now, by view_keys.py: noted for what is drawn")
    given = parser.parse_args(arguments)
    try:
        if given.name not in paper_figures.tables():
            raise paper_figures.unknown_name("table", given.name, paper_figures.tables())
        from blast.experiment.records.table import load_table
        from paper_figures.views._rows import same_rows_remark, told_apart
        from paper_figures.views._write import save_table

        module = paper_figures.load(given.name)
        frame = module.rows(paper_figures.rows_of(module, load_table(given.grid_dir, given.recorded)))
        shown = module.printed(frame) if hasattr(module, "printed") else frame
        shown, key = told_apart(frame, shown, module.KEY, module.SHOWN_KEY)
        remarks = module.remarks(frame) if hasattr(module, "remarks") else []
        remarks += [remark] if (remark := same_rows_remark(shown, key)) else []
        save_table(frame, shown, given.out_dir, given.name, getattr(module, "WIDTHS", None), remarks)
        if given.keys:
            note_drawn(paper_figures.FOLDER, given.name, given.out_dir, given.keys, GridFolder(given.grid_dir))
    except BlastError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    # A full disk, wherever it is noticed, is one sentence too.
    sys.exit(ended("error", main, code=1))
