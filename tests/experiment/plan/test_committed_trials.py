"""Trials of a learning rate in the committed grids: whichever wins, it was judged by the same tasks."""

from __future__ import annotations

from pathlib import Path

import pytest

from blast.experiment.plan.config import read_config
from blast.experiment.plan.grid import expand
from blast.experiment.records.point_facts import training_facts

CONFIGS = sorted((Path(__file__).resolve().parents[3] / "config").glob("*.yaml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_trials_of_a_learning_rate_are_judged_by_the_same_tasks(config):
    tasks: dict[str, dict[str, list[str] | None]] = {}
    for point in expand(read_config(config)).points.values():
        if group := training_facts(point.to_dict()).get("same_but_rate"):
            tasks.setdefault(group, {})[point.id] = point.evaluation.get("tasks")
    for trials in tasks.values():
        assert len({tuple(names or ()) for names in trials.values()}) == 1, trials
