"""The workflow: fetch → prepare → point → benchmark → import → tables → figures → verdict.

`snakemake --cores 8 all` runs the grid of config/config.yaml; `--configfile` names another config.
Rules only state what depends on what. The work is done by `python -m blast …`, in the library. So is the plan: `TODO`
holds the jobs that are left, by the contents of the files there are. Snakemake runs exactly these, in their order.
"""

import json
import math
import os
import re
import sys
from pathlib import Path

from blast.errors import BlastError
from blast.experiment.cluster_faults import check_slurm
from blast.experiment.command_end import guard_output
from blast.experiment.plan.config import used_config
from blast.experiment.plan.grid import expand
from blast.experiment.run.gpus import visible_gpus
from blast.experiment.plan.paths import GridFolder
from blast.experiment.run.locks import hold_grid
from blast.experiment.plan.resources import jobs_at_once
from blast.experiment.snakemake_hooks import UnknownTargetMessage, check_writable, refusal
from blast.experiment.todo.files import requests_key
from blast.experiment.tracking.imports import tracking_store
from blast.experiment.todo.todo import Todo, begin_run, find_todo
from blast.experiment.todo.views import find_views
from blast.experiment.tracking import stream
from snakemake.logging import logger

# A reader that stops, as in `snakemake … | head`, stops no run.
guard_output()

# What is read of the checkout is under ROOT; what is written is relative to the working folder (`--directory`).
ROOT = Path() if Path(workflow.basedir).samefile(Path()) else Path(workflow.basedir)
if set(str(ROOT)) & {*"{}"}:
    raise refusal(f"{ROOT}: Snakemake takes a brace in this path for a wildcard; run it in this folder, or rename it.")
SCRIPTS = ROOT / "workflow" / "scripts"
RECORDED = ROOT / "results" / "recorded"

try:
    CONFIG, CONFIG_FILE = used_config(workflow.config_settings.configfiles, config, ROOT)
    PLAN = expand(CONFIG, CONFIG_FILE)
    FOLDER = GridFolder(Path("results") / CONFIG.name)
    DRAWN = Path(CONFIG.figures)
    check_writable(FOLDER.root)
    check_writable(DRAWN)
except BlastError as error:
    raise refusal(error) from None

VIEWS = {view.name: view for view in find_views(ROOT / "paper_figures" / "views", DRAWN)}
FIGURES = [view.name for view in VIEWS.values() if view.is_figure]
TABLES = [view.name for view in VIEWS.values() if not view.is_figure]
if not TABLES or not FIGURES:
    raise refusal(f"{ROOT / 'paper_figures' / 'views'}: holds no figures or no tables; restore this folder from git.")
PICTURES = [str(file) for name in FIGURES for file in VIEWS[name].files]
PRINTED = [str(file) for name in TABLES for file in VIEWS[name].files]
# No result is written while this file is read, nor in a dry run; what was learnt of them is noted in the cache. Other processes of a run, as those of a
# cluster, read which jobs it has: by then some are done.
try:
    if workflow.is_main_process:
        TODO = find_todo(CONFIG, PLAN, FOLDER, tracking_store(), VIEWS.values(), RECORDED)
    else:
        TODO = Todo.read(FOLDER.todo)
except BlastError as error:
    raise refusal(error) from None
JOBS = {job.name: job for job in TODO.jobs}


def stamp(stage, name):
    """What a job of this run makes at its end. No stamp is there yet, so that every job that is planned runs."""
    return FOLDER.stamp(TODO.run, stage, name)


def run_for(files):
    """Makes Snakemake run the job of files that are there, but of other things. An input function of the job calls it."""
    workflow.dag.forcefiles.update(map(str, files))


# A command begins with one of these, and each `{…}` in it ends with `:q`, so that a shell takes no path apart. There is
# no `script:`, as Snakemake writes the path of Python into that command unquoted. `-P`: a file in the working folder
# cannot replace a module.
PYTHON = [sys.executable, "-P"]
BLAST = [*PYTHON, "-m", "blast"]

# A job of a cluster never downloads: what it needs was fetched where the workflow was started.
if workflow.remote_exec:
    os.environ["BLAST_OFFLINE"] = "1"


def on_cluster():
    """Whether jobs run on other machines than this process, or this is such a job. Known once the rules are read."""
    # A dry run has an executor of its own; the profiles of clusters say `jobs`.
    dry_run_of_one = workflow.dryrun and workflow.resource_settings.nodes is not None
    return workflow.remote_exec or workflow.non_local_exec or dry_run_of_one


def on_slurm():
    """Whether Slurm gets the jobs."""
    return workflow.executor_plugin is not None and workflow.executor_plugin.name == "slurm"


# Each job takes a slot. There are as many as the processors and memory of this machine allow, even with more --cores.
# Jobs of a cluster take none: its nodes are others. They ask for this memory, in MB.
SLOTS = jobs_at_once(CONFIG)
MEMORY = math.ceil(1000 * CONFIG.memory_gb)
workflow.global_resources["slots"] = SLOTS


resource_scopes:
    slots="local",


# Where there are several GPUs, a training takes one per process; `--resources gpus=4` limits them to four GPUs, also
# to four of a cluster, which are asked for only then.
GPUS_GIVEN = "gpus" in workflow.global_resources
if not GPUS_GIVEN:
    workflow.global_resources["gpus"] = len(visible_gpus())
GPUS = workflow.global_resources["gpus"].value


# These need the network, the store of MLflow, or seconds: on a cluster, the machine where the workflow was started runs
# them. Its nodes prepare data, train, time and compute metrics.
localrules:
    all,
    points,
    kernels,
    used_config,
    download,
    fetch,
    mlflow,
    view_keys,
    figure,
    table,
    figures,
    tables,
    verdict,


# What ends the process that streams points into MLflow.
STREAM = []


wildcard_constraints:
    dataset="|".join(map(re.escape, PLAN.datasets)) or "none",
    # Not a list of all jobs, which would be tried one by one for each file.
    job="[^/]+",
    name="[a-z0-9_]+",


include: "workflow/rules/data.smk"
include: "workflow/rules/points.smk"
include: "workflow/rules/tracking.smk"
include: "workflow/rules/views.smk"


rule all:
    """Everything, and a verdict: exit code 1 and one line for each failed point."""
    default_target: True
    input:
        FOLDER.verdict,


rule points:
    """All points of the grid, trained, evaluated and timed."""
    input:
        # A rule without input would run each time.
        planned() or FOLDER.plan,
        all_stamps(),


rule kernels:
    """The benchmarks of the kernels; they need a GPU."""
    input:
        planned() or FOLDER.plan,
        stamps([job for job in TODO.jobs if suite_of(PLAN.points[job.ids[0]]) == "kernels"]),


logger.addHandler(
    UnknownTargetMessage({rule.name for rule in workflow.rules if not rule.has_wildcards()} | {*PICTURES, *PRINTED})
)


onstart:
    try:
        if on_slurm():
            check_slurm(job.resources for job in workflow.dag.needrun_jobs())
        hold_grid(FOLDER)
        begin_run(TODO, FOLDER)
    except BlastError as error:
        raise refusal(error) from None
    left = sum(len(job.ids) for job in TODO.jobs)
    print(
        f"grid '{CONFIG.name}': {left} of {len(PLAN.points)} points to run in {len(JOBS)} jobs, "
        f"at most {SLOTS} at once; results in {FOLDER.root}, pictures in {CONFIG.figures}",
        flush=True,
    )
    for reason, count in TODO.why.items():
        print(f"{count} of them: {reason}", flush=True)
    # MLflow shows points while they train, by a process that no job waits for.
    STREAM.append(stream.start(FOLDER, {point.stage: None for point in PLAN.points.values()}))


onsuccess:
    for end in STREAM:
        end()


onerror:
    for end in STREAM:
        end()
    print(f"some jobs failed: see the lines above, and the logs in {FOLDER.root / 'logs'}", file=sys.stderr)
