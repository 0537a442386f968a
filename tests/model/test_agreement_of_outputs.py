"""The context in which two ways to compute one output are compared."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from blast.model.agreement import in_eval_mode


def test_each_part_has_its_training_flag_back_also_after_an_error():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(), nn.Dropout()))
    model[1][0].eval()
    before = [part.training for part in model.modules()]
    assert before == [True, True, True, False, True]
    with in_eval_mode(model):
        assert not any(part.training for part in model.modules())
        assert not torch.is_grad_enabled()
    assert [part.training for part in model.modules()] == before
    with pytest.raises(RuntimeError), in_eval_mode(model):
        model(torch.ones(3))
    assert [part.training for part in model.modules()] == before
    assert torch.is_grad_enabled()
