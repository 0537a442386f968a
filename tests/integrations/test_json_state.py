from __future__ import annotations

import json

import torch

from blast.integrations.json_state import from_json, to_json


def test_a_state_survives_json():
    masks = {"a": torch.rand(5, 7) < 0.5, "b": torch.ones(1, 1, dtype=torch.bool)}
    state = {"format": 2, "step_count": 3, "config": {"block": [8, 8]}, "masks": masks}
    back = from_json(json.loads(json.dumps(to_json(state))))
    assert {key: value for key, value in back.items() if key != "masks"} == {
        key: value for key, value in state.items() if key != "masks"
    }
    assert all(torch.equal(mask, back["masks"][name]) for name, mask in masks.items())
    assert all(mask.dtype == torch.bool for mask in back["masks"].values())
