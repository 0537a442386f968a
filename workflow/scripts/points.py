"""Runs the points of a job; `python -m blast job` does the same from point files."""

import os
import sys
from pathlib import Path

from blast.errors import STOPPED, STOPPED_CODE, BlastError
from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.run.job import run_points

points = [Point.from_dict(values) for values in snakemake.params.points]  # noqa: F821
log = Path(snakemake.log[0])  # noqa: F821
try:
    run_points(
        points,
        GridFolder(Path("results") / points[0].grid),
        log,
        total=int(os.environ["BLAST_POINTS"]),
        own_gpus=snakemake.resources.get("gpus", 0) > 0,  # noqa: F821
    )
except BlastError as error:
    with log.open("a") as stream:
        stream.write(f"{error}\n")
    sys.exit(f"blast: {error}")
except KeyboardInterrupt:
    print(f"blast: {STOPPED}", file=sys.stderr)
    sys.exit(STOPPED_CODE)
