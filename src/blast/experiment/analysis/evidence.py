"""Which results count for the paper's claims: recorded ones, and local ones of a whole grid of this repository."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pandas as pd

from blast.errors import BlastError
from blast.experiment.plan.config import read_config
from blast.experiment.plan.grid import expand
from blast.experiment.plan.paths import CHECKOUT, GridFolder
from blast.experiment.records.table import load_table, planned_points

# Committed grids whose numbers mean nothing.
TOYS = frozenset({"smoke"})
DEFAULT = "default"


def evidence(grid_dir: Path, recorded_dir: Path) -> tuple[pd.DataFrame, str | None]:
    """The rows that count for the claims, and why the local ones do not, if so.

    A local grid counts if it is the grid of a config that is committed in `config/`, unchanged and with all its points.
    Otherwise a trial of a few steps would decide a claim.

    Args:
        grid_dir: `results/<grid>`; may be missing.
        recorded_dir: `results/recorded`; may be missing.
    """
    there = GridFolder(grid_dir).plan.is_file() or next(Path(grid_dir, "records").glob("*.json"), None) is not None
    reason = why_not_counted(grid_dir) if there else None
    return load_table(grid_dir if reason is None else Path(grid_dir, "no local grid"), recorded_dir), reason


def why_not_counted(grid_dir: Path, configs: Path = CHECKOUT / "config") -> str | None:
    """Why a local grid does not count for the claims, in one sentence; None if it does.

    Args:
        grid_dir: `results/<grid>`, with its `plan.json`.
        configs: The folder of the committed configs.
    """
    planned = planned_points(grid_dir)
    if not planned:
        return "the local results do not count: without plan.json, nothing says which grid they are of."
    name = next(iter(planned.values())).grid
    said = f"the local grid '{name}' does not count: "
    file = configs / ("config.yaml" if name == DEFAULT else f"{name}.yaml")
    if name in TOYS:
        return f"{said}its numbers mean nothing but that every part works."
    if not _committed(file):
        return f"{said}its config is no unchanged config/{file.name} of this repository."
    try:
        config = read_config(file)
        whole = {point.id: point.digest for point in expand(config, file).points.values()}
    except BlastError as error:
        return f"{said}{error}"
    if config.name != name or whole != {point.id: point.digest for point in planned.values()}:
        return f"{said}its points are not those of config/{file.name}."
    return None


def _committed(file: Path) -> bool:
    """Whether a file is as it was committed; outside of git, whether it is there."""
    if not file.is_file():
        return False
    # An untracked file has a line `??`.
    asked = ["git", "status", "--porcelain", "--ignored", "--", file.name]
    try:
        said = subprocess.run(asked, cwd=file.parent, capture_output=True, text=True, check=False)
    except OSError:
        return True
    return said.returncode != 0 or not said.stdout.strip()
