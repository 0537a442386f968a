"""At which steps a training notes its losses, evaluates, and keeps its masks."""

from __future__ import annotations

import pytest
import torch

from blast.sparsity.config import SparsifyConfig
from blast.sparsity.sparsifier import Sparsifier
from blast.training import loop
from blast.training.settings import TrainingSettings


def history_of(steps: int, evaluate_every: int, sparsify: bool = False, watch=None):
    torch.manual_seed(0)
    settings = TrainingSettings.from_dict(
        {"steps": steps, "batch": 4, "learning_rate": 0.01, "evaluate_every": evaluate_every}
    )
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 8))
    optimizer, x, said = loop.make_optimizer(model, settings), torch.ones(4, 8), []
    sparsifier = None
    if sparsify:
        config = SparsifyConfig(sparsity=0.5, block=4, steps=steps, update_every=1, targets="*")
        sparsifier = Sparsifier(model, optimizer, config)
    history = loop.train(
        model, settings, batch_at=lambda step: (x, x), optimizer=optimizer, sparsifier=sparsifier, say=said.append,
        loss_of=lambda model, batch: model(batch[0]).square().mean(), evaluate=lambda model: 1.0,
        watch=watch,
    )  # fmt: skip
    return history, said


@pytest.mark.parametrize(("steps", "noted"), [
    (10, [0, 2, 4, 6, 8, 9]), (9, [0, 2, 4, 6, 8]), (3, [0, 1, 2]), (1, [0]),
])  # fmt: skip
def test_a_curve_has_about_as_many_points_as_asked_for_and_the_last_step(monkeypatch, steps, noted):
    monkeypatch.setattr(loop, "CURVE_POINTS", 4)
    history, said = history_of(steps, evaluate_every=4)
    assert history.curves["train_loss"]["step"] == noted
    assert said[-1].startswith(f"step {steps} of {steps}, loss ")


def test_a_model_is_evaluated_every_so_many_steps_and_at_the_end():
    assert history_of(10, 4)[0].curves["validation_loss"]["step"] == [3, 7, 9]
    assert history_of(8, 4)[0].curves["validation_loss"]["step"] == [3, 7]
    assert history_of(3, 100)[0].curves["validation_loss"]["step"] == [2]


def test_who_watches_is_told_each_value_of_a_curve_when_it_is_there(monkeypatch):
    monkeypatch.setattr(loop, "CURVE_POINTS", 4)
    told = []
    history, _ = history_of(10, 4, watch=lambda done, values: told.append((done - 1, values)))
    for name, curve in history.curves.items():
        assert [(s, v[name]) for s, v in told if name in v] == list(zip(curve["step"], curve["value"], strict=True))
    assert all(values.get("train_loss", values["loss"]) == values["loss"] for _, values in told)


@pytest.mark.parametrize(("steps", "kept"), [(15, [0, 2, 4, 6, 8, 10, 12, 14]), (3, [0, 1, 2])])
def test_masks_are_kept_at_eight_steps_from_the_first_to_the_last(steps, kept):
    history, _ = history_of(steps, 100, sparsify=True)
    assert list(history.masks) == kept
    shares = [float(masks["0"].float().mean()) for masks in history.masks.values()]
    assert shares[-1] == 0.5
    assert history.curves["sparsity_achieved"]["value"][-1] == 0.5
    assert history.curves["sparse_execution"]["value"][-1] in (0.0, 1.0)
    assert not history_of(steps, 100)[0].masks
