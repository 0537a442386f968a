"""The default grid tells methods apart, and fixes its masks when the learning rate begins to fall."""

from __future__ import annotations

from pathlib import Path

import pytest

from blast import architectures
from blast.experiment.plan.config import read_config
from blast.experiment.plan.grid import expand
from blast.sparsity.config import SparsifyConfig
from blast.training.settings import TrainingSettings

ROOT = Path(__file__).resolve().parents[3]
POINTS = [p for p in expand(read_config(ROOT / "config" / "config.yaml")).points.values() if p.stage == "train"]
PAIRS = sorted({(point.architecture, point.dataset) for point in POINTS})


def test_there_are_four_pairs_of_model_and_data():
    assert len(PAIRS) == 4


@pytest.mark.parametrize(("architecture", "dataset"), PAIRS)
def test_dense_blast_and_random_have_two_seeds_at_the_highest_sparsity(architecture, dataset):
    here = [point for point in POINTS if (point.architecture, point.dataset) == (architecture, dataset)]
    for method, sparsity in (("dense", 0), ("blast", 0.95), ("random", 0.95)):
        assert {p.seed for p in here if (p.method, p.sparsity) == (method, sparsity)} == {0, 1}, method
    assert {p.method for p in here if p.sparsity == 0.95} >= {"one_shot", "rigl_swap"}


def test_masks_are_fixed_at_the_step_after_which_the_learning_rate_falls():
    trained = [point for point in POINTS if point.sparsify and point.start != "parent"]
    assert trained
    for point in trained:
        training = TrainingSettings.from_dict(point.training)
        rates = [training.rate(step) for step in range(training.steps)]
        falls = next(step for step in range(1, training.steps) if rates[step] < rates[step - 1])
        assert falls - 1 == SparsifyConfig.from_dict(point.sparsify).final_step, point.id
        assert training.rate(training.steps) == 0


def test_a_pruned_point_trains_like_the_dense_one_that_it_is_compared_with():
    dense = {point.id: point for point in POINTS if point.method == "dense"}
    for point in POINTS:
        if point.method != "dense":
            assert point.training == dense[point.parent].training


@pytest.mark.parametrize("architecture", sorted({point.architecture for point in POINTS}))
def test_mlps_outweigh_attention_and_keep_a_choice_of_blocks(architecture):
    shape = architectures.get(architecture).shape
    attention = 2 * shape.hidden * (shape.heads + shape.kv_heads) * shape.width_of_head
    assert shape.mlp_weights >= 2 * shape.layers * attention
    for point in POINTS:
        if point.architecture == architecture and point.block:
            for _, rows, cols in shape.mlp_matrices:
                blocks = rows * cols // (point.block[0] * point.block[1])
                assert round((1 - point.sparsity) * blocks) >= 9
