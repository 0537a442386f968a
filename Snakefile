"""The workflow: fetch → prepare → point → benchmark → import → tables → figures → verdict.

`snakemake --cores 8 all` runs the grid of config/config.yaml; `--configfile` names another config.
Rules only state what depends on what. The work is done by `python -m blast …`, in the library.
"""

import json
import os
import re
import sys
from pathlib import Path

from blast.errors import BlastError
from blast.experiment.command_end import guard_output
from blast.experiment.records.fingerprint import fingerprint_of_points, language_fingerprint
from blast.experiment.plan.config import used_config
from blast.experiment.plan.grid import expand
from blast.experiment.run.gpus import visible_gpus
from blast.experiment.plan.paths import GridFolder
from blast.experiment.run.locks import hold_grid
from blast.experiment.plan.resources import jobs_at_once
from blast.experiment.snakemake_hooks import UnknownTargetMessage, check_writable, refusal
from blast.experiment.run.verdict import drop_stale_stamps
from snakemake.logging import logger

# A reader that stops, as in `snakemake … | head`, stops no run.
guard_output()

# What is read of the checkout is under ROOT; what is written is relative to the working folder (`--directory`).
ROOT = Path() if Path(workflow.basedir).samefile(Path()) else Path(workflow.basedir)
if set(str(ROOT)) & {*"{}"}:
    raise refusal(f"{ROOT}: Snakemake takes a brace in this path for a wildcard; run it in this folder, or rename it.")
SCRIPTS = ROOT / "workflow" / "scripts"

try:
    CONFIG, CONFIG_FILE = used_config(workflow.config_settings.configfiles, config, ROOT)
    PLAN = expand(CONFIG, CONFIG_FILE)
    FOLDER = GridFolder(Path("results") / CONFIG.name)
    DRAWN = Path(CONFIG.figures)
    check_writable(FOLDER.root)
    check_writable(DRAWN)
except BlastError as error:
    raise refusal(error) from None

JOBS = {job.name: job for job in PLAN.jobs}
# A command begins with one of these, and each `{…}` in it ends with `:q`, so that a shell takes no path apart. There is
# no `script:`, as Snakemake writes the path of Python into that command unquoted. `-P`: a file in the working folder
# cannot replace a module.
PYTHON = [sys.executable, "-P"]
BLAST = [*PYTHON, "-m", "blast"]
drop_stale_stamps(PLAN, FOLDER)

# Each job takes a slot. There are as many as the processors and memory of this machine allow, even with more --cores.
SLOTS = jobs_at_once(CONFIG)
workflow.global_resources["slots"] = SLOTS
# Where there are several GPUs, a training takes one per process; `--resources gpus=4` limits them to four GPUs.
GPUS_GIVEN = "gpus" in workflow.global_resources
if not GPUS_GIVEN:
    workflow.global_resources["gpus"] = len(visible_gpus())
GPUS = workflow.global_resources["gpus"].value


wildcard_constraints:
    job="|".join(map(re.escape, JOBS)) or "none",
    dataset="|".join(map(re.escape, PLAN.datasets)) or "none",
    name="[a-z0-9_]+",


include: "workflow/rules/data.smk"
include: "workflow/rules/points.smk"
include: "workflow/rules/tracking.smk"
include: "workflow/rules/views.smk"


rule all:
    """Everything, and a verdict: exit code 1 and one line for each failed point."""
    default_target: True
    input:
        FOLDER.root / "verdict.txt",


rule points:
    """All points of the grid, trained, evaluated and timed."""
    input:
        all_stamps(),


rule kernels:
    """The benchmarks of the kernels; they need a GPU."""
    input:
        stamps("benchmark", jobs_of_suite("kernels")),


logger.addHandler(
    UnknownTargetMessage({rule.name for rule in workflow.rules if not rule.has_wildcards()} | {*PICTURES, *PRINTED})
)


onstart:
    try:
        hold_grid(FOLDER)
    except BlastError as error:
        raise refusal(error) from None
    print(
        f"grid '{CONFIG.name}': {len(PLAN.points)} points in {len(JOBS)} jobs, "
        f"at most {SLOTS} at once; results in {FOLDER.root}, pictures in {CONFIG.figures}",
        flush=True,
    )


onerror:
    print(f"some jobs failed: see the lines above, and the logs in {FOLDER.root / 'logs'}", file=sys.stderr)
