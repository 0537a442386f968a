"""The suite `tensor_parallel` on the CPU: two processes, a small layer, and what is made of their times."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from fake_kernels import GPU
from fake_records import run_part
from together_cases import breaks, ends, is_killed_while_it_tells, refuses

from blast import architectures
from blast.architectures.inference_memory import Sparse
from blast.benchmark import tensor_parallel
from blast.benchmark.parallel.launch import run_together
from blast.benchmark.parallel.layer import cache_for, layer_part, reference_mlp, work_of
from blast.benchmark.parallel.projection import AllReduce, fitted
from blast.benchmark.settings import settings_of
from blast.block_sparse.blocks import keep_count
from blast.errors import BlastError
from blast.experiment.analysis.claims import judge
from blast.experiment.analysis.paper_values import read_paper_values
from blast.experiment.analysis.ratio import ratios
from blast.experiment.plan.point import Point
from blast.experiment.records.record import make_record
from blast.experiment.records.rows import record_rows
from blast.experiment.records.table import as_table
from blast.layers.block_linear import BlockLinear
from blast.tensor_parallel.processes import Processes

CPU = torch.device("cpu")
OWN = {"degrees": [1, 2], "projected": [4], "context": 16, "seconds": 1.0}
SETTINGS = {"tokens": [1, 4], "dtype": "float32", "repeats": 5, **settings_of("tensor_parallel", OWN)}
TIMES = ("layer_latency", "compute_latency", "mlp_latency")
SPARSE = Sparse(sparsity=0.75, block=(16, 16))


@pytest.fixture(scope="module")
def entries():
    return tensor_parallel.measure("llama-nano", 0.75, (16, 16), 0, SETTINGS)


def of(entries, metric, **where):
    return [
        entry for entry in entries if entry["metric"] == metric and where.items() <= (entry["setting"] | entry).items()
    ]


@pytest.mark.slow
def test_each_number_of_processes_is_timed_dense_and_ours(entries):
    for metric in TIMES:
        for gpus in (1, 2):
            found = of(entries, metric, gpus=gpus)
            assert {(entry["provider"], entry["tokens"]) for entry in found} == {
                (name, tokens) for name in ("dense_eager", "ours") for tokens in (1, 4)
            }
            assert all(0 < entry["low"] <= entry["value"] <= entry["high"] for entry in found)
    assert not any(entry["setting"].get("projected") for entry in entries if entry["setting"]["gpus"] < 4)


@pytest.mark.slow
def test_one_all_reduce_is_timed_where_there_is_one(entries):
    assert {(entry["setting"]["gpus"], entry["tokens"]) for entry in of(entries, "all_reduce_latency")} == {
        (2, 1),
        (2, 4),
    }
    assert of(entries, "all_reduce_latency", tokens=4)[0]["setting"]["bytes"] == 4 * 128 * 4


@pytest.mark.slow
def test_more_gpus_are_projected_from_a_part_and_two_all_reduces_and_say_so(entries):
    found = of(entries, "layer_latency", gpus=4)
    assert len(found) == 4
    for entry in found:
        about = entry["setting"]
        assert about["projected"] is True
        assert entry["value"] == pytest.approx(about["compute_ms"] + 2 * about["all_reduce_ms"])
        assert entry["low"] is None


@pytest.mark.slow
def test_bytes_of_ours_are_fewer_and_two_parts_hold_about_as_much(entries):
    for gpus in (1, 2):
        dense, ours = (of(entries, "weights_bytes", gpus=gpus, provider=name)[0] for name in ("dense_eager", "ours"))
        assert ours["value"] < 0.6 * dense["value"]
        assert ours["setting"]["least"] > 0.9 * ours["value"]
    alone, split = (of(entries, "read_bytes", gpus=gpus, provider="dense_eager", tokens=4)[0] for gpus in (1, 2))
    # Each process has the norms whole.
    assert split["value"] - alone["value"] == 2 * 128 * 4 / 4


@pytest.mark.slow
def test_without_a_gpu_the_energy_says_that_it_is_not_available(entries):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert {entry["status"] for entry in of(entries, "energy")} == {"not run"}


@pytest.mark.slow
def test_speed_ups_compare_dense_and_ours_of_as_many_gpus(entries):
    point = Point(
        id="tensor_parallel-llama-nano.float32.s75.b16.seed0", grid="default", stage="benchmark",
        architecture="llama-nano", method="blast", sparsity=0.75, block=(16, 16),
        benchmark=SETTINGS | {"suite": "tensor_parallel"},
    )  # fmt: skip
    result = {"metrics": entries, "curves": {}, "sparsity": {"target": 0.75, "achieved": 0.75, "matrices": {}}}
    record = make_record(point, status="ok", result=result, run=run_part(GPU, point.id, gpu="Imaginary"))
    found = ratios(as_table(record_rows(record, None)), "layer_latency")
    assert len(found) == 6
    for row in found.itertuples():
        dense, ours = (
            of(entries, "layer_latency", gpus=row.gpus, provider=name, tokens=row.tokens)[0]["value"]
            for name in ("dense_eager", "ours")
        )
        assert row.ratio == dense / ours


def test_a_projection_to_sixteen_gpus_is_judged_as_projected():
    point = Point(
        id="tensor_parallel-llama-3.1-405b.bfloat16.s95.b128.seed0", grid="default", stage="benchmark",
        architecture="llama-3.1-405b", method="blast", sparsity=0.95, block=(128, 128),
        benchmark=SETTINGS | {"suite": "tensor_parallel"},
    )  # fmt: skip
    facts = {"projected": True}
    metrics = [
        tensor_parallel._entry("latency", name, "ms", value, 1, 16, SETTINGS, facts)
        for name, value in (("dense_eager", 30.0), ("ours", 10.0))
    ]
    result = {"metrics": metrics, "curves": {}, "sparsity": {"target": 0.95, "achieved": 0.95, "matrices": {}}}
    record = make_record(point, status="ok", result=result, run=run_part(GPU, point.id, gpu="Imaginary"))
    (claim,) = [value for value in read_paper_values() if value.gpus == 16]
    (finding,) = judge(claim, as_table(record_rows(record, None)))
    assert (finding.verdict, finding.ours) == ("projected", "3.00x")


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_parts_of_a_layer_hold_all_live_blocks_and_add_up_to_its_shape(size):
    shape = architectures.get("llama-nano").shape
    made = [layer_part(shape, SPARSE, rank, size, 0, torch.float32, CPU) for rank in range(size)]
    layers = [[each for each in part.modules() if isinstance(each, BlockLinear)] for part in made]
    wanted = keep_count(shape.ffn // 16 * (shape.hidden // 16), 0.75)
    for same in zip(*layers, strict=True):
        assert sum(each.values.shape[0] for each in same) == wanted
    assert sum(part.self_attn.q_proj.out_features for part in made) == shape.heads * shape.width_of_head
    x = torch.randn(3, shape.hidden)
    for part in made:
        torch.testing.assert_close(part.mlp(x), reference_mlp(part.mlp, x), rtol=1e-4, atol=1e-5)
        cache = cache_for(part, 3, 8, torch.float32, CPU, 0)
        before = cache.keys.clone()
        assert part(x, cache, lambda each: each).shape == x.shape
        # The new token is written to the end of the cache, and nothing else.
        assert torch.equal(cache.keys[:, :, :-1], before[:, :, :-1])
        assert not torch.equal(cache.keys[:, :, -1], before[:, :, -1])


def test_a_dense_part_reads_all_it_holds_and_a_sparse_one_no_transposed_index():
    shape = architectures.get("llama-nano").shape
    dense, ours = (layer_part(shape, how, 0, 2, 0, torch.float32, CPU) for how in (None, SPARSE))
    assert work_of(dense).weights == work_of(dense).held
    attention = sum(parameter.nbytes for parameter in (*ours.self_attn.parameters(), *ours.input_norm.parameters()))
    blocks = sum(each.values.nbytes for each in ours.modules() if isinstance(each, BlockLinear))
    assert work_of(ours).weights < work_of(ours).held
    assert work_of(ours).weights <= attention + blocks + 4 * 128 + 30_000


def test_an_output_that_is_wrong_is_not_timed(monkeypatch):
    run = tensor_parallel.LayerRun(
        {"architecture": "llama-nano", "sparsity": 0.75, "block": [16, 16], "seed": 0, "degrees": [1],
         "settings": SETTINGS}, CPU,
    )  # fmt: skip
    wrong = tensor_parallel.reference_mlp
    monkeypatch.setattr(tensor_parallel, "reference_mlp", lambda mlp, x: 1.001 * wrong(mlp, x))
    with pytest.raises(
        BlastError, match=r"the MLP of 'llama-nano' in 1 parts is off by 1.0e-03 from the float32 refer"
    ):
        run.degree(Processes(None, 0, 1))
    assert not run.entries


def test_what_does_not_fit_the_machine_or_the_heads_is_not_run(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    found = tensor_parallel.measure("llama-nano", 0.75, (16, 16), 0, SETTINGS)
    causes = {entry["setting"]["cause"] for entry in found}
    assert causes == {f"it needs {gpus} GPUs and this machine has 0" for gpus in (1, 2)}
    assert {entry["status"] for entry in found} == {"not run"}
    monkeypatch.undo()
    run = tensor_parallel.LayerRun(
        {"architecture": "llama-nano", "sparsity": 0.75, "block": [16, 16], "seed": 0, "degrees": [3],
         "settings": SETTINGS}, CPU,
    )  # fmt: skip
    run.degree(Processes(None, 0, 3))
    assert all("cannot be split over 3 processes; start 1, 2 or 4" in each["setting"]["cause"] for each in run.entries)


def test_only_language_models_in_a_known_dtype_are_timed():
    with pytest.raises(BlastError, match="times language models; 'vit-nano' is none"):
        tensor_parallel.measure("vit-nano", 0.75, (16, 16), 0, SETTINGS)
    with pytest.raises(BlastError, match="unknown dtype 'int8'"):
        tensor_parallel.measure("llama-nano", 0.75, (16, 16), 0, SETTINGS | {"dtype": "int8"})


def ring(size, count, latency=3e-6, rate=200e9):
    return AllReduce(size, count, 2 * (size - 1) * (latency + count / size / rate))


def test_a_ring_is_fitted_by_its_latency_and_bandwidth():
    link = fitted([ring(size, count) for size in (2, 4) for count in (64 << 10, 4 << 20)])
    assert link.latency == pytest.approx(3e-6)
    assert link.seconds_per_byte == pytest.approx(1 / 200e9)
    assert link.seconds(16, 1 << 20) == pytest.approx(ring(16, 1 << 20).seconds)


def test_a_fit_is_never_negative_and_needs_more_than_one_gpu():
    assert fitted([]) is None
    assert fitted([AllReduce(1, 100, 1.0)]) is None
    (one,) = [ring(2, 1 << 20)]
    assert fitted([one]).seconds(2, 1 << 20) == pytest.approx(one.seconds)
    falling = fitted([AllReduce(2, 1 << 10, 2e-5), AllReduce(2, 1 << 20, 1e-5)])
    assert min(falling) >= 0
    assert falling.seconds(4, 1) > 0
    assert math.isfinite(falling.seconds(16, 1 << 30))


def test_the_whole_model_is_projected_as_its_layers_and_the_head(monkeypatch):
    known = dict(architectures._found())
    shape = replace(known["llama-nano"].shape, vocab=96, layers=7)
    known["llama-tiny"] = replace(known["llama-nano"], name="llama-tiny", shape=shape)
    monkeypatch.setattr(architectures, "_found", lambda: known)
    given = {
        "architecture": "llama-tiny",
        "sparsity": 0.75,
        "block": [16, 16],
        "seed": 0,
        "degrees": [],
        "settings": SETTINGS,
    }
    run = tensor_parallel.LayerRun(given, CPU)
    run.project(4)
    assert all("no all-reduce was measured" in entry["setting"]["cause"] for entry in run.entries)
    run.entries.clear()
    run.reduced.append(ring(2, 512))
    with torch.inference_mode():
        run.project(4)
    for entry in of(run.entries, "latency"):
        about = entry["setting"]
        assert about["projected"] is True
        assert entry["value"] == pytest.approx(7 * about["layer_ms"] + about["head_ms"])
        assert about["head_ms"] > 2 * about["all_reduce_ms"]
    assert len(of(run.entries, "latency")) == 4


@pytest.mark.slow
def test_processes_are_started_and_their_errors_are_one_sentence():
    with pytest.raises(BlastError, match=r"^process 1 cannot do it; buy another\.$"):
        run_together(refuses, 2, {"remedy": "buy another"}, 120.0)
    with pytest.raises(BlastError, match=r"0 of 2 waited for another one|a process of 2 ended without a message"):
        run_together(ends, 2, {}, 120.0)
    with pytest.raises(RuntimeError, match="ZeroDivisionError: a bug"):
        run_together(breaks, 2, {}, 120.0)


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_tells_its_fault_hides_no_other(tmp_path):
    with pytest.raises(BlastError, match=r"^the last process cannot do it\.$"):
        run_together(is_killed_while_it_tells, 2, {"folder": str(tmp_path)}, 120.0)
