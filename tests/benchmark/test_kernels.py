"""The suite `kernels` without a GPU: it runs on the reference implementations with a fake clock."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from kernel_suite_case import SETTINGS, latencies, measure, use_fake_gpu

from blast.benchmark import kernels
from blast.benchmark.providers import mlp_inference
from blast.benchmark.timing import cuda_graphs
from blast.errors import BlastError
from blast.experiment.analysis.ratio import ratios
from blast.experiment.plan.point import Point
from blast.experiment.records.record import make_record
from blast.experiment.records.rows import record_rows
from blast.experiment.records.table import as_table
from blast.experiment.run.benchmark import run_benchmark_point
from blast.experiment.run.progress import headline


@pytest.fixture
def fake_gpu(monkeypatch):
    use_fake_gpu(monkeypatch)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_gives_an_error_of_one_sentence():
    with pytest.raises(
        BlastError, match=r"'kernels' needs a GPU and this machine has no CUDA GPU; .*blast job"
    ) as caught:
        measure("llama-3.2-1b")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("architecture", ["llama-nano", "gpt2-nano"])
def test_ours_and_dense_are_timed_at_every_number_of_tokens(fake_gpu, architecture):
    metrics = measure(architecture, tied=[False, True], masks=["uniform", "skewed"])
    ours = [entry for entry in latencies(metrics) if entry["provider"] == "ours"]
    gated = architecture.startswith("llama")
    assert len(ours) == 2 * 2 * (2 if gated else 1)
    assert {entry.get("tied") for entry in ours} == ({False, True} if gated else {None})
    assert {entry["setting"]["mask"] for entry in ours} == {"uniform", "skewed"}
    assert all(entry["setting"]["error"] < 2e-5 for entry in ours)
    dense = [entry for entry in latencies(metrics) if entry["provider"] == "dense_eager"]
    assert [entry["tokens"] for entry in dense] == [3, 40]
    assert metrics[0]["provider"] == "ours"


def test_a_wrong_output_of_ours_raises_before_timing(fake_gpu, monkeypatch):
    right = mlp_inference._fused_call
    monkeypatch.setattr(mlp_inference, "_fused_call", lambda *a: lambda number: 1.01 * right(*a)(number))
    with pytest.raises(BlastError, match=r"ours at 3 tokens: its output is off by 1.0e-02 from the float32 reference"):
        measure()


def test_an_element_that_is_never_written_is_an_infinite_error():
    expected = torch.ones(2, 4)

    def call(number):
        out = torch.empty(2, 4)
        out[:, :3] = 1
        return out

    assert cuda_graphs.error_of(call, expected, torch.arange(2)) == math.inf
    assert cuda_graphs.error_of(lambda number: expected.clone(), expected, torch.arange(2)) == 0


def test_if_all_expected_values_are_zero_only_zeros_are_correct():
    """All hidden blocks may be dead: with one seed, SmolLM2's MLP in blocks of 64 at sparsity 0.95 is zero."""
    zeros = torch.zeros(2, 3)
    assert cuda_graphs.error_of(lambda number: zeros.clone(), zeros, torch.arange(2)) == 0
    assert cuda_graphs.error_of(lambda number: zeros + 1e-20, zeros, torch.arange(2)) > 1


def test_plain_memory_turns_off_deterministic_algorithms_within_its_body():
    torch.use_deterministic_algorithms(True)
    try:
        with cuda_graphs.plain_memory():
            assert not torch.are_deterministic_algorithms_enabled()
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_ours_without_dead_hidden_blocks_is_a_separate_provider(fake_gpu):
    metrics = latencies(measure(sparsity=0.9))
    skipped = [entry for entry in metrics if entry["provider"] == "ours_skipped"]
    assert len(skipped) == 2
    assert all(0 < entry["setting"]["dead_hidden"] < 1 for entry in skipped)


def test_the_dense_fallback_is_timed_where_the_break_even_table_chooses_dense(fake_gpu, monkeypatch):
    shapes = []
    monkeypatch.setattr(
        mlp_inference, "dense_ranges", lambda *given: shapes.append(given[3]) or ((10, True), (None, False))
    )
    metrics = latencies(measure())
    assert {entry["tokens"] for entry in metrics if entry["provider"] == "ours_dense_fallback"} == {3}
    assert set(shapes) == {(entry["setting"]["ffn"], entry["setting"]["hidden"]) for entry in metrics}


def test_a_point_out_of_time_has_an_entry_for_each_number_of_tokens_left(fake_gpu):
    metrics = measure(seconds=0.0)
    assert [(entry["tokens"], entry["status"]) for entry in metrics] == [(3, "not run"), (40, "not run")]


def test_without_trained_masks_their_row_is_not_run(fake_gpu, tmp_path):
    metrics = latencies(measure(masks=["uniform", "trained"], masks_folder=str(tmp_path)))
    lost = [entry for entry in metrics if entry.get("status") == "not run"]
    assert {entry["setting"]["mask"] for entry in lost} == {"trained"}
    assert "no masks of a trained llama-nano" in lost[0]["setting"]["cause"]


def test_the_roofline_fraction_is_the_bound_over_the_latency(fake_gpu):
    metrics = measure()
    shares = [entry for entry in metrics if entry["metric"] == "roofline_fraction" and entry["provider"] == "ours"]
    assert len(shares) == 2
    for entry in shares:
        assert entry["setting"]["bound"] == "launches"
        assert entry["value"] == pytest.approx(entry["setting"]["bound_ms"] / 1.0)


def test_a_benchmark_point_becomes_rows_with_ties_masks_and_missing_providers(fake_gpu, monkeypatch):
    point = Point(
        id="kernels-llama-nano.float32.s80.b16.seed0", grid="invented", stage="benchmark", architecture="llama-nano",
        method="blast", sparsity=0.8, block=(16, 16),
        benchmark=SETTINGS | {"suite": "kernels", "tied": [False, True], "peers": ["stk"]},
    )  # fmt: skip
    run = {"hardware": "imaginary-gpu", "gpu": "Imaginary", "started": "2026-11-23T10:00:00+00:00"}
    record = make_record(point, status="ok", result=run_benchmark_point(point, None), run=run)
    table = as_table(record_rows(record))
    found = ratios(table, "latency")
    ours = found[found["provider"] == "ours"]
    assert set(zip(ours["tied"], ours["mask"], ours["tokens"], strict=True)) == {
        (tied, "uniform", tokens) for tied in (False, True) for tokens in (3, 40)
    }
    assert (ours["ratio"] == 10).all()
    assert set(table.loc[table["provider"] == "stk", "status"]) == {"not run"}
    assert headline(record) == "1 ms"


def test_a_point_out_of_time_keeps_its_entries_and_is_unfinished(fake_gpu, monkeypatch):
    ticks = iter([0.0, 1.0, 200.0])
    monkeypatch.setattr(kernels, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    point = Point(
        id="kernels-llama-nano.float32.s80.b16.seed0", grid="invented", stage="benchmark", architecture="llama-nano",
        method="blast", sparsity=0.8, block=(16, 16), benchmark=SETTINGS | {"suite": "kernels"},
    )  # fmt: skip
    result = run_benchmark_point(point, None)
    timed = {entry["tokens"] for entry in latencies(result["metrics"]) if entry["value"]}
    assert timed == {3}
    assert result["unfinished"].startswith("its time was over before 40 tokens were timed; run again")
    assert "\n" not in result["unfinished"]


@pytest.mark.parametrize("architecture", ["llama-nano", "gpt2-nano"])
def test_rectangular_blocks_run_and_dead_hidden_blocks_are_removed_if_all_matrices_split_them_alike(
    fake_gpu, architecture
):
    settings = SETTINGS | {"masks": ["uniform"], "tied": [False, True]}
    metrics = {
        form: latencies(kernels.measure(architecture, 0.7, (32, 16), 0, settings | {"down_block": form}))
        for form in ("same", "transposed")
    }
    skipped = {form: [e for e in found if e["provider"] == "ours_skipped"] for form, found in metrics.items()}
    assert not skipped["same"]
    assert skipped["transposed"]
    assert all(
        entry["setting"]["error"] < 2e-5
        for entry in (*metrics["same"], *metrics["transposed"])
        if entry["provider"].startswith("ours")
    )
    assert {entry["setting"].get("down_block") for entry in metrics["same"]} == {None}
    assert {entry["setting"].get("down_block") for entry in metrics["transposed"]} == {"transposed"}


def test_the_error_for_an_unknown_down_block_gives_the_nearest_name():
    with pytest.raises(BlastError, match="did you mean 'transposed'"):
        kernels.mlp_size("gpt2-xl", (128, 64), "bfloat16", "transpose")


def test_the_mlp_in_one_launch_is_timed_up_to_16_tokens_if_it_is_asked_for(fake_gpu):
    arguments = ("llama-nano", 0.5, (32, 32), 0)
    metrics = latencies(kernels.measure(*arguments, SETTINGS | {"single_launch": True}))
    single = {entry["tokens"]: entry for entry in metrics if entry["provider"] == "ours_single"}
    assert list(single) == [3]
    assert single[3]["setting"]["error"] < 2e-5
    assert not [e for e in latencies(kernels.measure(*arguments, SETTINGS)) if e["provider"].startswith("ours_single")]


def test_a_failure_of_the_mlp_in_one_launch_is_recorded_and_stops_nothing(fake_gpu, monkeypatch):
    right = mlp_inference._single_call
    monkeypatch.setattr(mlp_inference, "_single_call", lambda *a: lambda number: 1.01 * right(*a)(number))
    metrics = latencies(kernels.measure("gpt2-nano", 0.5, (32, 32), 0, SETTINGS | {"single_launch": True}))
    (single,) = [entry for entry in metrics if entry["provider"] == "ours_single"]
    assert single["status"] == "failed"
    assert "off by 1.0e-02" in single["setting"]["cause"]
    assert {entry["tokens"] for entry in metrics if entry["provider"] == "ours"} == {3, 40}


def test_an_mlp_that_one_launch_cannot_run_has_a_row_that_says_why(fake_gpu):
    metrics = latencies(measure(single_launch=True))
    causes = {e["setting"]["cause"] for e in metrics if e["provider"] == "ours_single"}
    assert causes == {"one launch takes blocks of 32 and more, and no float8"}
