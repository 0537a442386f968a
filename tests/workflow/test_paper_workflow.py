"""The paper's grid, and a config with packaged weights, are planned with the right number of jobs per stage."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from patience import PATIENCE

from blast.experiment.plan.config import read_config
from blast.experiment.plan.grid import expand

ROOT = Path(__file__).resolve().parents[2]


def _dry_run(config: str) -> dict[str, int]:
    """Jobs by rule, as Snakemake counts them."""
    command = [sys.executable, "-m", "snakemake", "-n", f"--configfile={config}", "all"]
    environment = {**os.environ, "NO_COLOR": "1"}
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, env=environment, timeout=PATIENCE
    )
    table = (done.stdout + done.stderr).rpartition("Job stats:")[2]
    return {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)}


@pytest.mark.slow
@pytest.mark.parametrize("config", ["config/paper.yaml", "config/smollm2.yaml"])
def test_the_whole_grid_is_planned_with_jobs_by_stage(config):
    plan = expand(read_config(ROOT / config))
    jobs = _dry_run(config)
    stages = [job.stage for job in plan.jobs]
    assert jobs["point"] == stages.count("train")
    assert jobs.get("benchmark", 0) == stages.count("benchmark")
    assert jobs["fetch"] == jobs["prepare"] == len(plan.datasets)
    assert jobs["requests"] == sum(bool(plan.tasks(dataset)) for dataset in plan.datasets)
    assert jobs["language"] == sum(
        any(plan.points[name].evaluation.get("tasks") for name in job.ids) for job in plan.jobs
    )
    assert jobs["verdict"] == jobs["all"] == 1


def test_every_image_of_the_paper_is_cut_into_whole_patches():
    plan = expand(read_config(ROOT / "config" / "paper.yaml"))
    for point in plan.points.values():
        if point.architecture.startswith("vit"):
            assert point.data.get("image_size", 224) % 16 == 0
