"""Training in bfloat16: products by autocast, everything that is kept in float32."""

from __future__ import annotations

import pytest
import torch

from blast.errors import BlastError
from blast.training.loop import make_optimizer, train
from blast.training.settings import TrainingSettings

GIVEN = {"steps": 3, "batch": 4, "learning_rate": 0.01, "evaluate_every": 3}


def test_an_unknown_dtype_is_refused_and_the_nearest_named():
    with pytest.raises(BlastError, match="the training setting 'dtype' is 'bfloat'; did you mean 'bfloat16'"):
        TrainingSettings.from_dict(GIVEN | {"dtype": "bfloat"})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_are_made_in_the_dtype_and_weights_gradients_and_moments_stay_float32(dtype):
    settings = TrainingSettings.from_dict(GIVEN | {"dtype": dtype})
    model, seen, device = torch.nn.Linear(8, 8), set(), torch.device("cpu")
    optimizer = make_optimizer(model, settings)

    def loss_of(model, batch):
        with settings.autocast(device):
            out = model(batch[0])
            seen.add(out.dtype)
            return out.float().square().mean()

    x = torch.ones(4, 8)
    train(model, settings, batch_at=lambda step: (x, x), loss_of=loss_of, optimizer=optimizer,
          evaluate=lambda model: loss_of(model, (x, x)).item(), say=lambda line: None)  # fmt: skip
    assert seen == {getattr(torch, dtype)}
    assert model.weight.dtype == model.weight.grad.dtype == torch.float32
    assert optimizer.state[model.weight]["exp_avg"].dtype == torch.float32
