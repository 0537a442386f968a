"""The spread of sparsity over layers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from experts_models import build
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsity_models import assert_dead_blocks_are_zero
from torch import nn

import blast
from blast.errors import BlastError
from blast.sparsity.calibration import input_moments
from blast.sparsity.layer_budgets import (
    WEIGHT_OUTLIER,
    block_outliers,
    scope_budgets,
    spread_budgets,
    spread_densities,
    weight_outliers,
)
from blast.sparsity.mask_groups import find_mask_groups, pruning_scopes
from blast.sparsity.one_shot import full_mask, one_shot_masks
from blast.sparsity.one_shot_calibrated import prune_once_
from blast.sparsity.scores import keep_scores
from blast.sparsity.selection import block_budget

SPREAD = 0.15


class Mlps(nn.Module):
    """Residual MLPs, gated or plain; later layers have more strong blocks."""

    def __init__(self, layers: int = 4, gated: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(self._mlp(gated) for _ in range(layers))
        with torch.no_grad():
            for number, mlp in enumerate(self.layers):
                for linear in mlp.children():
                    rows, cols = (side // 8 for side in linear.weight.shape)
                    strong = (torch.randperm(rows * cols) < 2 * number).view(rows, cols)
                    linear.weight.mul_(1 + 4 * strong.repeat_interleave(8, 0).repeat_interleave(8, 1))

    @staticmethod
    def _mlp(gated: bool) -> nn.Module:
        names = ("gate_proj", "up_proj", "down_proj") if gated else ("fc1", "fc2")
        return nn.ModuleDict({name: nn.Linear(64, 32) if name in ("down_proj", "fc2") else nn.Linear(32, 64)
                              for name in names})  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for mlp in self.layers:
            first, *rest = list(mlp.children())
            hidden = first(x).relu()
            x = x + rest[-1](hidden * rest[0](x) if len(rest) == 2 else hidden)
        return x


def config(**changes) -> blast.SparsifyConfig:
    return blast.SparsifyConfig(
        **{"sparsity": 0.75, "block": 8, "steps": 8, "update_every": 2, "layer_spread": SPREAD, **changes}
    )


def density_by_layer(masks: dict[str, torch.Tensor]) -> dict[str, float]:
    layers: dict[str, list[torch.Tensor]] = {}
    for name, mask in masks.items():
        layers.setdefault(name.split(".")[name.split(".").index("layers") + 1], []).append(mask)
    return {
        layer: sum(int(m.sum()) for m in of) / sum(m.numel() for m in of) for layer, of in layers.items()
    }  # fmt: skip


def live(masks: dict[str, torch.Tensor]) -> int:
    return sum(int(mask.sum()) for mask in masks.values())


def train(model: nn.Module, settings: blast.SparsifyConfig) -> blast.Sparsifier:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    sparsifier = blast.Sparsifier(model, optimizer, settings)
    for step in range(settings.steps):
        optimizer.zero_grad()
        model(torch.randn(8, 32, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        sparsifier.step()
        optimizer.step()
    assert_dead_blocks_are_zero(sparsifier)
    return sparsifier


SCOPE = st.tuples(st.integers(1, 60), st.integers(1, 2), st.floats(0, 1))


@settings(deadline=None, max_examples=150)
@given(st.lists(SCOPE, min_size=2, max_size=8), st.floats(0, 0.99), st.floats(0, 0.5), st.integers(0, 10_000))
def test_budgets_have_the_exact_sum_and_stay_within_the_spread(scopes, sparsity, wish, seed):
    blocks, costs, shares = (np.array(values) for values in zip(*scopes, strict=True))
    sizes = blocks * costs
    total = sum(block_budget([n], [c], sparsity) for n, c in zip(blocks.tolist(), costs.tolist(), strict=True))
    density, spread = 1 - sparsity, min(wish, sparsity, 1 - sparsity)
    # Some scopes have lost blocks already, though not so many that the sum is out of reach.
    lost = np.random.default_rng(seed).integers(0, blocks) * costs
    most = sizes - lost if (sizes - lost).sum() >= total else sizes
    densities = spread_densities(shares, sizes, density, spread, stretch=seed % 2 == 0)
    assert abs(np.average(densities, weights=sizes) - density) < 1e-9
    assert (np.abs(densities - density) <= spread + 1e-9).all()
    budgets = np.array(
        spread_budgets(total, densities, sizes, (density - spread, density + spread), costs, most, costs)
    )
    assert (budgets >= costs).all()
    assert (budgets <= most).all()
    assert (budgets % costs == 0).all()
    if (costs == costs[0]).all() or (most == sizes).all():
        # Scopes of one and of two weight blocks: an odd rest needs room in one that takes single blocks.
        assert budgets.sum() == total or (total - budgets.sum() == 1 and not (budgets < most)[costs == 1].any())
    if (most == sizes).all():
        # Up to whole blocks: a step to round, one that the sum needs, and the block that each matrix keeps.
        off = np.abs(budgets - density * sizes) - spread * sizes
        assert (off <= 3 * costs).all()


def test_layers_with_more_outliers_keep_more_and_the_total_is_that_without_spread():
    model = Mlps()
    for ranking in ("matrix", "layer"):
        masks = one_shot_masks(model, config(ranking=ranking))
        assert live(masks) == live(one_shot_masks(model, config(ranking=ranking, layer_spread=0)))
        densities = list(density_by_layer(masks).values())
        assert densities == sorted(densities)
        assert densities[0] < densities[-1]
        assert max(abs(density - 0.25) for density in densities) == pytest.approx(SPREAD, abs=1 / 32)
        if ranking == "matrix":
            for layer, density in density_by_layer(masks).items():
                assert all(
                    abs(float(mask.float().mean()) - density) <= 1 / 32
                    for name, mask in masks.items()
                    if f".{layer}." in name
                )


def test_layers_that_differ_in_scale_and_order_alone_are_alike():
    model = Mlps(layers=3)
    with torch.no_grad():
        for number, mlp in enumerate(model.layers):
            for name, linear in mlp.items():
                rows = torch.roll(torch.arange(linear.weight.shape[0]), 8 * number)
                linear.weight.copy_((number + 1) * model.layers[0][name].weight[rows])
    masks = one_shot_masks(model, config())
    assert [float(mask.float().mean()) for mask in masks.values()] == [0.25] * 6


@pytest.mark.parametrize(
    ("grow", "tied", "ranking"),
    [("union", False, "matrix"), ("swap", False, "layer"), ("none", True, "matrix"), ("swap", True, "layer")],
)
def test_training_ends_at_the_exact_total_within_the_spread(grow, tied, ranking):
    masks = train(Mlps(gated=True), config(grow=grow, tie_gate_up=tied, ranking=ranking)).masks
    if tied and ranking == "layer":
        # As without spread: a layer with an odd rest and no live block of down left stays one block below its budget.
        assert 12 * 8 - 4 <= live(masks) <= 12 * 8
    else:
        assert live(masks) == 12 * 8
    densities = density_by_layer(masks).values()
    assert max(densities) > min(densities)
    assert all(abs(density - 0.25) <= SPREAD + 2 / 96 for density in densities)
    assert all(mask.any() for mask in masks.values())


def test_swap_holds_the_total_at_every_update():
    model = Mlps()
    settings = config(grow="swap", schedule="constant")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    sparsifier = blast.Sparsifier(model, optimizer, settings)
    seen = set()
    for step in range(8):
        optimizer.zero_grad()
        model(torch.randn(8, 32, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        sparsifier.step()
        optimizer.step()
        assert live(sparsifier.masks) == 8 * 8
        seen.add(tuple(density_by_layer(sparsifier.masks).values()))
    assert len(seen) > 1, "no layer ever got more blocks than before"


def test_dense_layers_take_no_part_and_experts_do():
    masks = one_shot_masks(Mlps(), config(dense_first=1, dense_last=1))
    assert set(density_by_layer(masks)) == {"1", "2"}
    assert live(masks) == 4 * 8
    model = build("qwen3_moe")
    with torch.no_grad():
        model.model.layers[1].mlp.experts.down_proj[:, :8, :8] *= 5
    masks = one_shot_masks(model, config(sparsity=0.5))
    densities = density_by_layer(masks)
    assert densities["0"] == pytest.approx(0.5 - SPREAD, abs=0.1)
    assert densities["0"] + densities["1"] == pytest.approx(1)


def test_a_calibration_counts_outliers_as_owl_does():
    model = Mlps(layers=2)
    with torch.no_grad():
        model.layers[0]["fc2"].weight[:, :4] *= 20
    settings = config(keep_score="wanda")
    groups, _ = find_mask_groups(model, settings)
    batch = torch.randn(64, 32, generator=torch.Generator().manual_seed(1))
    targets = [target for group in groups for target in group.matrices]
    for full in (False, True):
        shares = weight_outliers(groups, input_moments(model, targets, [batch], lambda m, x: m(x), full))
        x = batch
        for number, mlp in enumerate(model.layers):
            hidden = mlp["fc1"](x).relu()
            values = torch.cat(
                [
                    (mlp[name].weight.abs() * seen.square().mean(0).sqrt()).flatten()
                    for name, seen in (("fc1", x), ("fc2", hidden))
                ]
            )
            expected = (values > WEIGHT_OUTLIER * values.mean()).float().mean().item()
            assert shares[f"layers.{number}"] == pytest.approx(expected, abs=2e-4)
            x = x + mlp["fc2"](hidden)
        assert shares["layers.0"] > shares["layers.1"]
    masks = prune_once_(model, settings, [batch], lambda m, x: m(x))
    assert live(masks) == 4 * 8
    assert density_by_layer(masks) == {
        "0": pytest.approx(0.25 + SPREAD, abs=1 / 32),
        "1": pytest.approx(0.1, abs=1 / 32),
    }


def test_outliers_are_the_live_blocks_that_exceed_the_median_of_their_matrix_most():
    groups, _ = find_mask_groups(Mlps(layers=2), config())
    scores = [torch.rand(group.grid, generator=torch.Generator().manual_seed(group.index)) for group in groups]
    masks = [full_mask(group) for group in groups]
    masks[2][1:] = False  # 4 live blocks
    scores[2] *= masks[2]
    scores[3][:, 2:] = 0.0  # live, but just grown
    shares = block_outliers(groups, masks, scores)
    relative = [
        np.where(mask, score / np.median(score[score > 0]), 0) for score, mask in zip(scores, masks, strict=True)
    ]
    limit = np.sort(np.concatenate([part.ravel() for part in relative]))[-10]  # of 100 live blocks
    above = [int((part >= limit).sum()) for part in relative]
    assert sum(above) == 10
    assert shares == {"layers.0": (above[0] + above[1]) / 64, "layers.1": (above[2] + above[3]) / 36}


@pytest.mark.parametrize("stretch", [False, True])
def test_small_differences_are_stretched_only_if_asked(stretch):
    sizes = np.array([10, 10, 20])
    small = spread_densities(np.array([0.08, 0.12, 0.1]), sizes, 0.25, 0.1, stretch)
    assert small == pytest.approx([0.15, 0.35, 0.25] if stretch else [0.23, 0.27, 0.25])
    large = spread_densities(np.array([0.0, 0.2, 0.1]), sizes, 0.25, 0.1, stretch)
    assert large == pytest.approx([0.15, 0.35, 0.25])
    assert spread_densities(np.full(3, 0.5), sizes, 0.25, 0.1, stretch) == pytest.approx([0.25] * 3)
    assert spread_densities(np.zeros(3), sizes, 0.25, 0.1, stretch) == pytest.approx([0.25] * 3)


def test_early_in_the_schedule_the_spread_is_at_most_the_sparsity():
    model, settings = Mlps(), config()
    groups, _ = find_mask_groups(model, settings)
    masks = [full_mask(group) for group in groups]
    scores = keep_scores(groups, masks, settings, 0)
    scopes = pruning_scopes(groups, "matrix")
    for sparsity in (0.0, 0.05, 0.1, 0.5):
        budgets = scope_budgets(scopes, settings, sparsity, masks, scores)
        plain = [block_budget([group.blocks], [1], sparsity) for group in groups]
        assert sum(budgets) == sum(plain)
        assert all(budget <= 32 for budget in budgets)
        assert min(budgets) >= math.floor(32 * (1 - sparsity - min(SPREAD, sparsity)))


def test_what_makes_no_sense_is_refused():
    with pytest.raises(BlastError, match="which the ranking 'model' does already; set layer_spread to 0"):
        config(ranking="model")
    with pytest.raises(BlastError, match=r"layer_spread 0\.15 may empty a layer, because the sparsity 0\.9 keeps"):
        config(sparsity=0.9)
    with pytest.raises(BlastError, match="layer_spread needs scores of the weights, and the keep score is 'random'"):
        config(keep_score="random")
    with pytest.raises(BlastError, match="spreads the sparsity over layers, and one alone is pruned; leave it out"):
        one_shot_masks(Mlps(layers=1), config())


def test_a_config_without_it_keeps_its_plain_form():
    assert "layer_spread" not in config(layer_spread=0).to_dict()
    assert blast.SparsifyConfig.from_dict(config().to_dict()) == config()
    assert config(layer_spread=0).digest() == blast.SparsifyConfig(0.75, 8, 8, update_every=2).digest()
