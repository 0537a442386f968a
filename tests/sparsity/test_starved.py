"""Matrices of different scales that compete for one budget: the warning, and the keep score that makes them compare."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import blast
from blast.sparsity.config import SparsifyConfig
from blast.sparsity.mask_groups import find_mask_groups
from blast.sparsity.one_shot import full_mask, one_shot_masks
from blast.sparsity.scores import keep_scores


def scaled(ratio: float) -> nn.Module:
    """Two matrices of which the second is `ratio` times as large, as the output projections of GPT-2 are smaller."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))
    with torch.no_grad():
        for layer, std in ((model[0], 1.0), (model[2], ratio)):
            nn.init.normal_(layer.weight, std=std)
    return model


def config(**settings) -> SparsifyConfig:
    settings = {"grow": "none", "targets": ("0", "2"), "ranking": "model", **settings}
    return SparsifyConfig.from_dict({"sparsity": 0.8, "block": 8, "steps": 10, **settings})


def live(masks: dict[str, torch.Tensor]) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in masks.items()}


def test_one_shot_pruning_warns_of_a_matrix_that_loses_nearly_all_blocks_to_another():
    with pytest.warns(UserWarning, match=r"the ranking 'model' leaves '2' 1 of 128 blocks .* 'lamp'"):
        assert live(one_shot_masks(scaled(0.1), config())) == {"0": 50, "2": 1}


def test_training_warns_once():
    model = scaled(0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    sparsifier = blast.Sparsifier(model, optimizer, config(update_every=1, execution="masked"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(10):
            model(torch.randn(4, 64)).square().mean().backward()
            sparsifier.step()
            optimizer.zero_grad()
    assert len([str(warning.message) for warning in caught if "leaves '2'" in str(warning.message)]) == 1


@pytest.mark.parametrize("settings", [{"keep_score": "lamp"}, {"ranking": "matrix"}])
def test_what_the_warning_advises_ends_it(settings):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept = live(one_shot_masks(scaled(0.1), config(**settings)))
    assert min(kept.values()) > 15


def test_lamp_is_the_share_in_the_norm_of_the_blocks_that_are_not_smaller():
    model = scaled(0.1)
    with torch.no_grad():
        model[0].weight[:8] = 0
    groups, _ = find_mask_groups(model, config())
    masks = [full_mask(group) for group in groups]
    norms = keep_scores(groups, masks, config(), step=0)
    for norm, score in zip(norms, keep_scores(groups, masks, config(keep_score="lamp"), step=0), strict=True):
        squares = norm.double().square()
        for one, of in zip(squares.flatten(), score.flatten(), strict=True):
            whole = float(squares[squares >= one].sum())
            assert float(of) == pytest.approx((float(one) / whole) ** 0.5)
        assert torch.equal(norm.flatten().argsort(stable=True), score.flatten().argsort(stable=True))


def test_lamp_does_not_depend_on_the_scale_of_a_matrix():
    small, large = (one_shot_masks(scaled(ratio), config(keep_score="lamp")) for ratio in (0.01, 100.0))
    assert all(torch.equal(small[name], large[name]) for name in small)
