from __future__ import annotations

import io

import pytest
import torch
from sparsity_models import OPTIMIZERS, tiny_gpt2, tiny_llama, train_step

from blast.errors import BlastError
from blast.sparsity.config import SparsifyConfig
from blast.sparsity.sparsifier import Sparsifier

SETTINGS = {"sparsity": 0.8, "block": 16, "steps": 14, "update_every": 2, "hold": 0.2, "initial_sparsity": 0.3}


def make(build, optimizer: str, **settings) -> Sparsifier:
    model = build()
    config = SparsifyConfig.from_dict({**SETTINGS, **settings})
    return Sparsifier(model, OPTIMIZERS[optimizer](model.parameters()), config)


def through_a_file(state: dict) -> dict:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("cut", [3, 12])
@pytest.mark.parametrize("grow", ["union", "swap"])
def test_a_resumed_run_equals_an_undisturbed_one_bit_for_bit(grow, cut):
    settings = {"grow": grow, "grow_score": "random" if grow == "swap" else "gradient"}
    whole = make(tiny_gpt2, "adamw", **settings)
    for _ in range(14):
        train_step(whole)

    first = make(tiny_gpt2, "adamw", **settings)
    for _ in range(cut):
        train_step(first)
    saved = through_a_file(
        {"model": first.model.state_dict(), "optimizer": first.optimizer.state_dict(), "mask": first.state_dict()}
    )
    second = make(tiny_gpt2, "adamw", **settings)
    second.model.load_state_dict(saved["model"])
    second.optimizer.load_state_dict(saved["optimizer"])
    second.load_state_dict(saved["mask"])
    # What was drawn since from the global generator must not matter.
    torch.rand(17)
    for _ in range(14 - cut):
        train_step(second)

    assert second.report() == whole.report()
    ours, theirs = second.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_saved_state_is_not_changed_by_going_on():
    sparsifier = make(tiny_llama, "sgd_momentum")
    for _ in range(5):
        train_step(sparsifier)
    saved = sparsifier.state_dict()
    masks = {name: mask.clone() for name, mask in saved["masks"].items()}
    for _ in range(9):
        train_step(sparsifier)
    assert saved["step_count"] == 5
    assert all(torch.equal(mask, masks[name]) for name, mask in saved["masks"].items())


def test_tied_masks_are_still_one_tensor_after_a_resume():
    sparsifier = make(tiny_llama, "adamw", tie_gate_up=True)
    sparsifier.load_state_dict(through_a_file(sparsifier.state_dict()))
    masks = sparsifier.masks
    assert masks["model.layers.0.mlp.gate_proj"] is masks["model.layers.0.mlp.up_proj"]


def test_a_state_of_another_config_is_refused_with_what_differs():
    saved = make(tiny_gpt2, "adamw").state_dict()
    with pytest.raises(BlastError, match=r"another config \(sparsity was 0.8 and is 0.9\)"):
        make(tiny_gpt2, "adamw", sparsity=0.9).load_state_dict(saved)


def test_a_state_of_another_model_is_refused():
    saved = make(tiny_gpt2, "adamw").state_dict()
    with pytest.raises(BlastError, match="other matrices"):
        make(tiny_llama, "adamw").load_state_dict(saved)


def test_a_state_of_another_format_is_refused():
    saved = make(tiny_gpt2, "adamw").state_dict()
    with pytest.raises(BlastError, match="format 99"):
        make(tiny_gpt2, "adamw").load_state_dict({**saved, "format": 99})
