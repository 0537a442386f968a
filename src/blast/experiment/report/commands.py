"""The verb `report`."""

from __future__ import annotations

import argparse
from pathlib import Path

from blast.experiment.plan.options import AddVerb, config_option, recorded_option
from blast.experiment.plan.paths import GridFolder


def report(options: argparse.Namespace) -> int:
    """Writes the report of a grid: one HTML file with verdict, claims, figures, tables and origin, to send to others.

    Example: blast report config/config.yaml
    """
    # Records, figures and tables are read as they are; nothing is run.
    from blast.experiment.plan.config import read_config
    from blast.experiment.report.page import write_report

    config = read_config(options.config)
    folder = GridFolder(options.grid_dir or Path("results") / config.name)
    file = options.out or folder.root / "report.html"
    write_report(folder, options.figures or Path(config.figures), options.recorded, file)
    print(f"written: {file} ({file.stat().st_size / 1e6:.1f} MB); open it in a browser, or send it to a colleague")
    return 0


def add_verbs(verb: AddVerb) -> None:
    """Adds the verb."""
    made = verb("report", report)
    made.add_argument("config", **config_option(), nargs="?")
    made.add_argument("--grid-dir", type=Path, help="folder of the grid (default: results/<name>)")
    made.add_argument("--figures", type=Path, help="folder of figures and tables (default: that of the config)")
    made.add_argument("--recorded", **recorded_option())
    made.add_argument("--out", type=Path, metavar="FILE.html", help="default: report.html in the folder of the grid")
