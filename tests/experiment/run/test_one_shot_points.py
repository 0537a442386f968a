"""One-shot methods as points of a grid on text: by activations, with compensation, with and without a permutation."""

from __future__ import annotations

import pytest
import torch
from fake_records import run_part

from blast.block_sparse.blocks import BlockShape, keep_count
from blast.checkpoint.checkpoint import load
from blast.errors import BlastError
from blast.experiment.plan.config import parse
from blast.experiment.plan.grid import expand
from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.records.record import make_record
from blast.experiment.run import prune
from blast.experiment.run.worker import run_point
from blast.files import write_json
from blast.model.convert import to_dense
from blast.model.discovery import match_matrices
from blast.sparsity.permutation import permute_hidden_units_

METHODS = ["one_shot_wanda", "one_shot_obs"]
TRAINING = {"steps": 6, "batch": 4, "length": 32, "learning_rate": 0.003, "evaluate_every": 6, "evaluate_limit": 8}
SPARSIFY = {"plain": {}, "permuted": {"permute_hidden": True}}


def plan(blocks: dict[str, dict]) -> dict[str, Point]:
    """The points of a grid on pystdlib with one variant for each entry of `sparsify` settings."""
    grid = [
        {
            "architectures": ["gpt2-nano"],
            "datasets": ["pystdlib"],
            "sparsity": [0.75],
            "blocks": [16],
            "methods": METHODS,
            "variant": variant,
            "sparsify": sparsify,
        }
        for variant, sparsify in blocks.items()
    ]
    values = {
        "name": "once",
        "training": {"default": TRAINING},
        "data": {"pystdlib": {"vocab_size": 512}},
        "evaluation": {"tasks": {"pystdlib": []}, "limit": 8},
        "grid": grid,
    }
    return expand(parse(values, "grid.yaml")).points


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """The folder, the points and their results by id; the calibration looks at two batches only."""
    folder, points = GridFolder(tmp_path_factory.mktemp("once")), plan(SPARSIFY)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(prune, "CALIBRATION", 2 * TRAINING["batch"] * TRAINING["length"])
        results = {}
        for name, point in points.items():
            results[name] = run_point(point, folder)
            write_json(folder.record(name), make_record(point, status="ok", result=results[name], run=run_part("cpu")))
        return folder, points, results


def weights(folder: GridFolder, name: str) -> dict[str, torch.Tensor]:
    """The matrices `[out, in]` of a saved model, by name."""
    model = to_dense(load(folder.work(name) / "checkpoint"))
    return {target.name: target.weight for target in match_matrices(model)}


def live(weight: torch.Tensor) -> torch.Tensor:
    """Which elements lie in blocks that are not zero."""
    rows, cols = weight.shape
    blocks = (weight.view(rows // 16, 16, cols // 16, 16) != 0).any(3).any(1)
    return blocks.repeat_interleave(16, 0).repeat_interleave(16, 1)


def named(method: str, variant: str) -> str:
    return f"gpt2-nano.pystdlib.{method}.s75.b16.seed0.{variant}"


def test_every_point_is_pruned_to_its_budget_and_its_masks_are_its_own(grid):
    folder, points, results = grid
    assert set(points) == {"gpt2-nano.pystdlib.dense.seed0", *(named(m, v) for m in METHODS for v in SPARSIFY)}
    masks = {}
    for method in METHODS:
        for variant in SPARSIFY:
            result = results[named(method, variant)]
            assert result["sparsity"]["matrices"].keys() == weights(folder, named(method, variant)).keys()
            for entry in result["sparsity"]["matrices"].values():
                assert entry["live"] == keep_count(entry["blocks"], 0.75)
            found = weights(folder, named(method, variant))
            masks[method, variant] = torch.cat([live(weight).flatten() for weight in found.values()])
            (loss,) = (entry["value"] for entry in result["metrics"] if entry["metric"] == "loss")
            assert 0 < loss < 10
    different = {tuple(mask.nonzero().flatten().tolist()) for mask in masks.values()}
    assert len(different) == len(masks)


@pytest.mark.parametrize("variant", SPARSIFY)
def test_what_stays_is_that_of_the_parent_but_for_compensation(grid, variant):
    folder, points, _ = grid
    dense = load(folder.work("gpt2-nano.pystdlib.dense.seed0") / "checkpoint")
    if variant == "permuted":
        permute_hidden_units_(dense, [target.name for target in match_matrices(dense)], BlockShape(16, 16))
    parent = {target.name: target.weight for target in match_matrices(dense)}
    for method in METHODS:
        found = weights(folder, named(method, variant))
        kept = all(torch.equal(weight, parent[name] * live(weight)) for name, weight in found.items())
        assert kept == (method != "one_shot_obs")
        assert points[named(method, variant)].sparsify.get("permute_hidden", False) == (variant == "permuted")


def test_a_permutation_of_an_mlp_that_cannot_be_permuted_is_one_sentence(grid):
    folder, _, _ = grid
    in_part = {"permute_hidden": True, "targets": ["*.c_fc"]}
    for sparsify, sentence in (
        (in_part, "because only some of the matrices of each are pruned; choose all of them with 'targets', or leave"),
        ({**in_part, "targets": ["attention"]}, "because the targets are no MLPs of linear layers"),
    ):
        point = plan({"bad": sparsify})[named("one_shot_wanda", "bad")]
        with pytest.raises(BlastError, match=sentence) as refused:
            run_point(point, folder)
        assert "\n" not in str(refused.value)
