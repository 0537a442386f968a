"""The workflow: fetch → prepare → point → benchmark → import → tables → figures → verdict.

`snakemake --cores 8 all` runs the grid of config/config.yaml; another one is given with --configfile.
What the rules run is in the library `blast`; they only say what needs what.
"""

import json
import os
import re
import sys
from pathlib import Path

from blast.errors import BlastError
from blast.experiment.records.fingerprint import fingerprint_of_points, language_fingerprint
from blast.experiment.plan.config import used_config
from blast.experiment.plan.grid import expand
from blast.experiment.run.launch import visible_gpus
from blast.experiment.plan.paths import GridFolder
from blast.experiment.run.locks import hold_grid
from blast.experiment.plan.resources import jobs_at_once
from blast.experiment.snakemake_hooks import UnknownTarget
from blast.experiment.run.verdict import drop_stale_stamps
from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

try:
    CONFIG, CONFIG_FILE = used_config(workflow.config_settings.configfiles, config)
    PLAN = expand(CONFIG, CONFIG_FILE)
except BlastError as error:
    # Said here, as a quiet Snakemake keeps it to itself.
    print(f"blast: {error}", file=sys.stderr)
    raise WorkflowError(str(error)) from None

FOLDER = GridFolder(Path("results") / CONFIG.name)
JOBS = {job.name: job for job in PLAN.jobs}
PYTHON = sys.executable
drop_stale_stamps(PLAN, FOLDER)

# --cores 8 on a smaller machine starts only what its processors and memory carry: each job takes a slot.
SLOTS = jobs_at_once(CONFIG)
workflow.global_resources["slots"] = SLOTS
# No more trainings on several processes at once than there are GPUs for; `--resources gpus=4` says how many to use.
GPUS_GIVEN = "gpus" in workflow.global_resources
if not GPUS_GIVEN:
    workflow.global_resources["gpus"] = len(visible_gpus())
GPUS = workflow.global_resources["gpus"].value
os.environ["BLAST_POINTS"] = str(len(PLAN.points))


wildcard_constraints:
    job="|".join(map(re.escape, JOBS)) or "none",
    dataset="|".join(map(re.escape, PLAN.datasets)) or "none",
    name="[a-z0-9_]+",


include: "workflow/rules/data.smk"
include: "workflow/rules/points.smk"
include: "workflow/rules/tracking.smk"
include: "workflow/rules/views.smk"


rule all:
    """Everything, and a verdict: exit code 1 and one line for each point that failed."""
    default_target: True
    input:
        FOLDER.root / "verdict.txt",


rule points:
    """All points of the grid, trained, evaluated and timed."""
    input:
        all_stamps(),


rule kernels:
    """The benchmarks of the kernels; only a machine with a GPU can run them."""
    input:
        stamps("benchmark", jobs_of_suite("kernels")),


logger.addHandler(
    UnknownTarget({rule.name for rule in workflow.rules if not rule.has_wildcards()} | {*PICTURES, *PRINTED})
)


onstart:
    try:
        hold_grid(FOLDER)
    except BlastError as error:
        print(f"blast: {error}", file=sys.stderr)
        raise WorkflowError(str(error)) from None
    print(
        f"grid '{CONFIG.name}': {len(PLAN.points)} points in {len(JOBS)} jobs, "
        f"at most {SLOTS} at once; results in {FOLDER.root}, pictures in {CONFIG.figures}",
        flush=True,
    )


onerror:
    print(f"not everything is done: see the lines above, and the logs in {FOLDER.root / 'logs'}", file=sys.stderr)
