"""Small dense models as a method of the grid."""

from __future__ import annotations

from dataclasses import replace

import pytest

from blast import architectures
from blast.errors import BlastError
from blast.experiment.plan.config import parse
from blast.experiment.plan.grid import equal_weights_ffn, expand
from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.records.fingerprint import entry_of
from blast.experiment.run.worker import run_point

TRAINING = {"steps": 4, "batch": 4, "learning_rate": 0.001, "evaluate_every": 4, "evaluate_limit": 16}


def points(architecture="vit-nano", dataset="digits", **block):
    block = {
        "architectures": [architecture],
        "datasets": [dataset],
        "sparsity": [0, 0.8],
        "methods": ["small_dense"],
    } | block
    return expand(parse({"name": "small", "training": {"default": TRAINING}, "grid": [block]}, "grid.yaml")).points


@pytest.mark.parametrize(("sparsity", "ffn"), [(0.8, 640), (0.9, 320), (0.95, 160)])
def test_its_width_leaves_as_many_weights_as_the_sparsity(sparsity, ffn):
    assert equal_weights_ffn("gpt2", sparsity) == ffn
    shape = architectures.get("gpt2").shape
    fewer, asked = (replace(shape, ffn=width).mlp_weights for width in (ffn - 32, ffn))
    assert fewer < shape.mlp_weights * (1 - sparsity) <= asked


def test_a_width_that_is_a_multiple_already_is_not_rounded_up():
    assert equal_weights_ffn("gpt2-large", 0.95) == 256  # 5120 * (1 - 0.95) is 256.00000000000023


def test_the_grid_holds_it_beside_the_dense_run_and_the_pruned_ones():
    found = points(methods=["blast", "small_dense"], blocks=[8, 16], ffn=[64, 96], variant="trial")
    small = {name: point for name, point in found.items() if point.method == "small_dense"}
    assert sorted(small) == [
        "vit-nano.digits.small_dense.s80.ffn64.seed0.trial",
        "vit-nano.digits.small_dense.s80.ffn96.seed0.trial",
    ]
    assert len(found) == 1 + 2 + 2
    for point in small.values():
        assert (point.sparsity, point.block, point.sparsify, point.start) == (0.8, None, None, "scratch")
        assert point.parent == "vit-nano.digits.dense.seed0"
        assert entry_of(point) == "blast.experiment.run.train:run_dense_point"
        assert Point.from_dict(point.to_dict()) == point
    assert len({point.digest for point in small.values()}) == 2


def test_it_is_trained_and_measured_with_narrow_mlps(tmp_path):
    (name,) = [name for name in points() if "small_dense" in name]
    point = points()[name]
    result = run_point(point, GridFolder(tmp_path))
    shape = architectures.get("vit-nano").shape
    small = replace(shape, ffn=point.ffn)
    dense = run_point(points()[point.parent], GridFolder(tmp_path))
    # Each inner unit has a weight in both matrices and a bias.
    missing = shape.layers * (shape.ffn - small.ffn) * (2 * shape.hidden + 1)
    assert result["parameters"]["total"] == dense["parameters"]["total"] - missing
    assert result["parameters"]["prunable"] == shape.mlp_weights
    assert result["parameters"]["live"] == small.mlp_weights
    assert result["sparsity"]["achieved"] == pytest.approx(1 - small.ffn / shape.ffn)
    value = {entry["metric"]: entry["value"] for entry in result["metrics"]}
    assert value["mlp_bytes"] < 0.5 * {entry["metric"]: entry["value"] for entry in dense["metrics"]}["mlp_bytes"]


def test_published_weights_have_no_narrow_form():
    with pytest.raises(BlastError, match="has narrower MLPs than the published 'gpt2'; write 'start: scratch'"):
        points("gpt2", "pystdlib", start="pretrained")
