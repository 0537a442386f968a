"""Which points one process runs, and in which order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from blast.experiment.plan.config import parse
from blast.experiment.plan.grid import expand
from blast.experiment.plan.jobs import make_jobs

TRAINING = {"default": {"steps": 10, "batch": 4, "learning_rate": 0.01}}
PRUNED = {"architectures": ["vit-nano"], "datasets": ["digits"], "sparsity": [0.5], "blocks": [16]}
DENSE = "vit-nano.digits.dense.seed0"


def test_a_job_runs_dense_points_first_and_then_those_that_need_them():
    taught = PRUNED | {"methods": ["dense"], "variant": "taught", "distillation": {}}
    grid = [PRUNED | {"methods": ["blast"]}, taught, PRUNED | {"methods": ["one_shot"]}]
    config = parse({"name": "t1", "training": TRAINING, "grid": grid, "points_per_job": {"default": 9}}, Path("t.yaml"))
    points = expand(config).points.values()
    blast, one_shot = (f"vit-nano.digits.{method}.s50.b16.seed0" for method in ("blast", "one_shot"))
    (job,) = make_jobs(config, points)
    assert job.ids == (DENSE, f"{DENSE}.taught", one_shot, blast)
    # Whatever their order in the plan.
    assert make_jobs(config, reversed(points))[0].ids[0] == DENSE
    assert job.after == ()
    # What needs a dense point of another job waits for that one.
    first, second = make_jobs(replace(config, points_per_job={"default": 1}), points)[:2]
    assert (first.ids, first.after, second.after) == ((DENSE,), (), (DENSE,))
