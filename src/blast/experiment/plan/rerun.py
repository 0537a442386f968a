"""The command that runs points again, from a clean checkout; needs only the standard library."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from blast.experiment.plan.paths import CHECKOUT, GridFolder
from blast.experiment.plan.point import Point


@cache
def config_of(grid: str) -> Path | None:
    """The config in `config/` that has the name of a grid, relative to the checkout; None unless there is one."""
    line = re.compile(rf"^name:\s*(['\"]?){re.escape(grid)}\1\s*(#.*)?$", re.MULTILINE)
    files = sorted((CHECKOUT / "config").glob("*.yaml"))
    found = [file for file in files if line.search(file.read_text(encoding="utf-8"))]
    return found[0].relative_to(CHECKOUT) if len(found) == 1 else None


def rerun_of_grid(grid: str, ids: Sequence[str]) -> str | None:
    """The command that runs points of a grid again; None if no config in `config/` has its name.

    Args:
        grid: Name of the grid.
        ids: Ids of its points. The points whose checkpoints they need run too.
    """
    config = config_of(grid)
    return None if config is None else shlex.join(["python", "-m", "blast", "rerun", *ids, "--config", str(config)])


def rerun_command(point: Point, folder: GridFolder) -> str:
    """The command that runs a point again, with the points whose checkpoints it needs.

    It names the config of the grid: the one in `config/`, else the one that the workflow wrote into the folder of the
    grid. Without a config it names the files of the points.

    Args:
        point: The point.
        folder: Folder of its grid.
    """
    config = config_of(point.grid)
    if config is None and (folder.root / "config.yaml").is_file():
        config = folder.root / "config.yaml"
    if config is None:
        files = [str(folder.work(name) / "point.json") for name in (*point.needs, point.id)]
        return shlex.join(["python", "-m", "blast", "job", *files, "--out", f"results/again/{point.grid}"])
    digest = point.digest.removeprefix("sha256:")[:12]
    return shlex.join(["python", "-m", "blast", "rerun", point.id, "--config", str(config), "--digest", digest])
