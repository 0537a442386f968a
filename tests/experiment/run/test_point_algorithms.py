"""A training point, and whether torch is asked for deterministic algorithms while it trains."""

from __future__ import annotations

from contextlib import contextmanager

from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.run import train as train_stage
from blast.training import loop
from blast.training.settings import TrainingSettings


def test_a_point_trains_within_the_algorithms_of_its_settings(tmp_path, monkeypatch):
    training = {"batch": 4, "learning_rate": 0.01, "steps": 2, "evaluate_every": 2, "deterministic": False}
    point = Point(id="p", grid="t", stage="train", architecture="vit-nano", dataset="digits", training=training)
    within, seen = [], []

    @contextmanager
    def algorithms(settings, device):
        within.append(settings.deterministic)
        yield
        within.pop()

    def train(*arguments, **named):
        seen.append(list(within))
        return loop.train(*arguments, **named)

    monkeypatch.setattr(TrainingSettings, "algorithms", algorithms)
    monkeypatch.setattr(train_stage, "train", train)
    result = train_stage.run_dense_point(point, GridFolder(tmp_path))
    assert seen == [[False]]
    assert within == []
    assert result["metrics"]
