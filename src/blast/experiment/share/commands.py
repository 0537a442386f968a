"""The verb `blast export`; `blast import` takes in what it wrote."""

from __future__ import annotations

import argparse
from pathlib import Path

from blast.errors import unknown_name
from blast.experiment.plan.options import AddVerb, point_id
from blast.experiment.plan.paths import GridFolder, in_checkout


def export(options: argparse.Namespace) -> int:
    """Writes points of a grid into one file, with a digest of everything, which `blast import` verifies and takes in.

    It holds records, metrics, curves, masks and scores of items; with --checkpoints also weights. With those of the
    parents, another machine runs pruned points without training the dense ones again.

    Example: blast export default --checkpoints parents --out default.tar
    """
    from blast.experiment.share.pack import CHECKPOINT, pack

    places = [Path(options.grid), options.results / options.grid]
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        raise unknown_name("grid", options.grid, {file.parent.name for file in options.results.glob("*/records")})
    file, manifest = pack(GridFolder(folder), options.points, options.checkpoints, options.out)
    weights = {path.split("/")[1] for path in manifest.files if f"/{CHECKPOINT}/" in path}
    print(
        f"{len(manifest.points)} points of the grid '{manifest.grid}' in {len(manifest.files)} files, "
        f"{file.stat().st_size / 1e6:,.1f} MB; checkpoints of {len(weights)} points"
    )
    print(f"digest: {manifest.digest}")
    print(f"written: {file}; take it in with: blast import {file} --grid-dir results/{manifest.grid}")
    return 0


def add_verbs(verb: AddVerb) -> None:
    """Adds the verb that writes a bundle.

    Args:
        verb: Adds one verb.
    """
    made = verb("export", export)
    made.add_argument("grid", metavar="GRID", help="a grid: its folder or its name")
    made.add_argument(
        "--points",
        nargs="+",
        metavar="ID",
        type=point_id,
        default=[],
        help="ids of points (default: all that have a record)",
    )
    made.add_argument(
        "--checkpoints",
        choices=("none", "parents", "all"),
        default="none",
        help="whose weights come along; parents: those that others are pruned from (default: none)",
    )
    made.add_argument("--out", type=Path, metavar="FILE", help="the file (default: GRID.<digest>.tar)")
    made.add_argument(
        "--results", type=Path, default=in_checkout("results"), help="folder of the grids (default: results)"
    )
