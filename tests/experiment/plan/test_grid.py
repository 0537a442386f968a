from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blast.benchmark.kernels import mlp_size
from blast.errors import BlastError
from blast.experiment.plan.config import Config, parse, read_config
from blast.experiment.plan.grid import block_label, expand, share_label
from blast.experiment.records.point_facts import execution_facts

TRAINING = {
    "default": {"steps": 10, "batch": 4, "learning_rate": 0.01},
    "digits": {"steps": 7},
    "vit-nano.digits": {"batch": 9},
}


def config(**grid) -> Config:
    values = {"architectures": ["vit-nano"], "datasets": ["digits"], "sparsity": [0.5], "blocks": [16], **grid}
    return parse(
        {"name": "t1", "training": TRAINING, "grid": [values], "points_per_job": {"default": 3}}, Path("t.yaml")
    )


@settings(max_examples=25, deadline=None)
@given(
    sparsity=st.lists(st.sampled_from([0, 0.5, 0.7, 0.9]), min_size=1, unique=True),
    blocks=st.lists(st.sampled_from([8, 16, (16, 32)]), min_size=1, unique=True),
    seeds=st.lists(st.integers(0, 3), min_size=1, unique=True),
    methods=st.lists(st.sampled_from(["blast", "rigl_swap", "one_shot", "random"]), min_size=1, unique=True),
)
def test_a_grid_is_the_product_of_its_lists_with_each_dense_run_once(sparsity, blocks, seeds, methods):
    plan = expand(config(sparsity=sparsity, blocks=blocks, seeds=seeds, methods=methods))
    dense = [point for point in plan.points.values() if point.method == "dense"]
    assert len(dense) == len(seeds)
    assert all(point.block is None and point.sparsify is None and point.sparsity == 0 for point in dense)
    pruned = len([share for share in sparsity if share > 0]) * len(blocks) * len(seeds) * len(methods)
    assert len(plan.points) == len(dense) + pruned
    assert all(plan.points[point.parent].method == "dense" for point in plan.points.values() if point.parent)


@settings(max_examples=25, deadline=None)
@given(seeds=st.lists(st.integers(0, 9), min_size=1, max_size=8, unique=True))
def test_jobs_hold_every_point_once_and_wait_for_the_parents_they_start_from(seeds):
    plan = expand(config(seeds=seeds, methods=["blast", "one_shot"]))
    ids = [name for job in plan.jobs for name in job.ids]
    assert sorted(ids) == sorted(plan.points)
    assert all(len(job.ids) <= 3 for job in plan.jobs)
    for job in plan.jobs:
        parents = {plan.points[name].parent for name in job.ids if plan.points[name].start == "parent"}
        assert set(job.after) == parents - set(job.ids)
        order = {name: place for place, name in enumerate(ids)}
        assert all(
            order[parent] < order[name] for name in job.ids for parent in parents if plan.points[name].parent == parent
        )


def test_training_settings_go_from_general_to_particular():
    training = next(iter(expand(config()).points.values())).training
    assert (training["steps"], training["batch"], training["learning_rate"]) == (7, 9, 0.01)


def test_entries_with_other_learning_rates_can_share_a_dense_run():
    trial = {"variant": "fast", "training": {"learning_rate": 0.5}, "dense_run": "shared"}
    dense, pruned = expand(config(**trial)).points.values()
    assert (dense.id, pruned.id) == ("vit-nano.digits.dense.seed0", "vit-nano.digits.blast.s50.b16.seed0.fast")
    assert (dense.training["learning_rate"], pruned.training["learning_rate"]) == (0.01, 0.5)
    assert pruned.parent == dense.id
    assert dense == next(iter(expand(config()).points.values()))
    own, _ = expand(config(**trial | {"dense_run": "own"})).points.values()
    assert (own.id, own.training["learning_rate"]) == ("vit-nano.digits.dense.seed0.fast", 0.5)


def test_a_block_with_a_variant_may_change_what_its_method_sets():
    _, pruned = expand(config(variant="tried", sparsify={"keep_score": "second_moment", "hold": 0.5})).points.values()
    assert pruned.id.endswith(".tried")
    assert (pruned.sparsify["keep_score"], pruned.sparsify["hold"]) == ("second_moment", 0.5)
    assert (pruned.sparsify["grow"], pruned.method) == ("union", "blast")


def test_every_method_gets_equal_steps():
    plan = expand(config(methods=["blast", "rigl_swap", "one_shot", "random"]))
    assert {point.training["steps"] for point in plan.points.values()} == {7}
    assert {point.sparsify["steps"] for point in plan.points.values() if point.sparsify} == {7}


def test_labels_are_readable_and_distinct():
    assert [share_label(share) for share in (0.95, 0.975, 0.7, 0.05)] == ["s95", "s97p5", "s70", "s5"]
    assert [block_label(block) for block in ((16, 16), (32, 128))] == ["b16", "b32x128"]


def test_the_digest_of_a_point_moves_with_its_settings_and_not_with_the_name_of_its_grid():
    plan = expand(config())
    other = expand(replace(config(), name="t2"))
    for name, point in plan.points.items():
        assert other.points[name].digest == point.digest
    dense, pruned = plan.points.values()
    assert dense.digest != pruned.digest


def benchmark(shape: str, block: list[int], **suite) -> Config:
    values = {
        "suite": "kernels",
        "shapes": [shape],
        "sparsity": [0.9],
        "blocks": [block],
        "tokens": [1],
        "settings": suite,
    }
    return parse({"name": "t2", "benchmarks": [values]}, Path("t.yaml"))


def test_a_rectangle_that_only_fits_transposed_in_the_down_projection_is_refused_without_that():
    with pytest.raises(BlastError, match=r"block 128x64 does not divide the 'fc2' matrix 1600x6400 of 'gpt2-xl'"):
        expand(benchmark("gpt2-xl", [128, 64]))
    assert expand(benchmark("gpt2-xl", [128, 64], down_block="transposed")).points
    with pytest.raises(BlastError, match=r"block 64x128 does not divide the 'fc1' matrix 6400x1600 of 'gpt2-xl'"):
        expand(benchmark("gpt2-xl", [64, 128], down_block="transposed"))


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("h100", {(128, 64), (128, 32), (64, 128), (32, 128)}), ("h200", {(128, 128), (64, 64)})],
)
def test_every_benchmark_of_a_large_gpu_tiles_each_matrix_of_its_mlp(name, blocks):
    file = Path(__file__).resolve().parents[3] / "config" / f"{name}.yaml"
    planned = [point for point in expand(read_config(file), file).points.values() if point.stage == "benchmark"]
    assert blocks < {point.block for point in planned}
    for point in planned:
        size = mlp_size(point.architecture, point.block, "bfloat16", point.benchmark.get("down_block", "same"))
        for (rows, cols), (b_out, b_in) in (
            ((size.ffn, size.hidden), size.block),
            ((size.hidden, size.ffn), size.down_block),
        ):
            assert rows % b_out == cols % b_in == 0, point.id


def test_the_h200_times_what_it_has_tuned_and_curves_of_forty_token_counts():
    file = Path(__file__).resolve().parents[3] / "config" / "h200.yaml"
    points = list(expand(read_config(file), file).points.values())

    def places(suite: str, variant: str) -> set[tuple]:
        chosen = [p for p in points if p.benchmark["suite"] == suite and p.id.endswith(f".{variant}")]
        return {(point.architecture, point.sparsity, point.block) for point in chosen}

    assert places("kernels", "goals") == places("kernel_plans", "goals")
    curves = [point for point in points if point.id.endswith(".tokens")]
    assert len(curves) == 5
    assert all(len(point.benchmark["tokens"]) == len(set(point.benchmark["tokens"])) == 40 for point in curves)
    tuned = places("kernel_plans", "goals") | places("kernel_plans", "small")
    assert places("kernels", "tokens") <= tuned
    # What is tuned first is worth most: the configs of the goals come before all timings.
    suites = [point.benchmark["suite"] for point in points]
    assert suites[:8] == ["kernel_plans"] * 8


def test_a_variant_that_trains_alike_shares_the_dense_run_and_one_that_does_not_has_its_own():
    base = {"architectures": ["vit-nano"], "datasets": ["digits"], "sparsity": [0.5], "blocks": [16]}
    masked = base | {"variant": "masked", "sparsify": {"execution": "masked"}}
    longer = base | {"variant": "longer", "training": {"steps": 20}}
    values = {"name": "t1", "training": TRAINING, "grid": [base, masked, longer]}
    points = expand(parse(values, Path("t.yaml"))).points
    parents = {name.rpartition(".")[2]: point.parent for name, point in points.items() if point.parent}
    assert parents == {
        "seed0": "vit-nano.digits.dense.seed0",
        "masked": "vit-nano.digits.dense.seed0",
        "longer": "vit-nano.digits.dense.seed0.longer",
    }
    assert len(points) == 5


def test_the_study_has_a_pair_that_differs_in_execution_alone():
    points = expand(read_config(Path("config/study.yaml"))).points
    by_rest = {}
    for point in points.values():
        facts = execution_facts(point.to_dict())
        if facts:
            by_rest.setdefault(facts["same_but_execution"], set()).add(facts["execution"])
    assert [kinds for kinds in by_rest.values() if len(kinds) > 1] == [{"auto", "masked"}]
    assert len([point for point in points.values() if point.method == "dense"]) == 2


def test_a_block_can_be_evaluated_in_its_own_way_and_its_dense_run_follows_unless_it_is_shared():
    block = {"variant": "trial", "evaluation": {"train": 8}}
    own_dense, own = expand(config(**block)).points.values()
    assert own_dense.evaluation["train"] == own.evaluation["train"] == 8
    assert own_dense.id.endswith(".trial")
    dense, pruned = expand(config(**block | {"dense_run": "shared"})).points.values()
    assert "train" not in dense.evaluation
    assert pruned.evaluation["train"] == 8
    assert dense.id.endswith("seed0")


def test_a_task_of_an_unknown_dataset_in_a_block_is_refused():
    with pytest.raises(BlastError, match="nowhere"):
        expand(config(evaluation={"tasks": {"nowhere": ["hellaswag"]}}))


def evaluated(*blocks):
    given = {"name": "t2", "training": TRAINING, "evaluation": {"tasks": {"pystdlib": ["pystdlib_heldout"]}}}
    text = {"architectures": ["gpt2-nano"], "datasets": ["pystdlib"], "sparsity": [0], "blocks": [16]}
    return parse(given | {"grid": [text | block for block in blocks]}, Path("t.yaml"))


def test_a_block_without_tasks_leaves_those_of_the_dataset_as_they_are():
    trial = {"variant": "lr2", "training": {"learning_rate": 0.02}, "evaluation": {"tasks": {"pystdlib": []}}}
    for blocks in ((trial, {}), ({}, trial)):
        plan = expand(evaluated(*blocks))
        assert plan.tasks("pystdlib") == ["pystdlib_heldout"]
        assert sorted(len(point.evaluation["tasks"]) for point in plan.points.values()) == [0, 1]


@pytest.mark.parametrize(
    ("evaluation", "key"),
    [({"tasks": {"pystdlib": ["sciq"]}}, "tasks"), ({"items": 5}, "items"), ({"separate_test": True}, "separate_test")],
)
def test_requests_of_a_dataset_are_the_same_for_all_its_points(evaluation, key):
    other = {"variant": "other", "seeds": [1], "evaluation": evaluation}
    with pytest.raises(BlastError, match=f"'pystdlib' have different 'evaluation.{key}'.*; give all the same"):
        expand(evaluated({}, other))
