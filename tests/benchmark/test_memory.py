"""The suite `memory` without a GPU: tiny models on the CPU, with a meter that follows the tensors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fake_records import run_part
from live_memory import LiveMemory

import blast
from blast import architectures
from blast.architectures.inference_memory import Sparse
from blast.benchmark import memory
from blast.benchmark.inputs.model import random_model, uniform_masks
from blast.benchmark.settings import settings_of
from blast.block_sparse.blocks import keep_count
from blast.checkpoint import weights_file
from blast.errors import BlastError
from blast.experiment.analysis.ratio import ratios
from blast.experiment.plan.point import Point
from blast.experiment.records.record import make_record
from blast.experiment.records.rows import record_rows
from blast.experiment.records.table import as_table
from blast.experiment.run.benchmark import run_benchmark_point
from blast.model.module_replacement import sparse_layers

SETTINGS = {"tokens": [64], "dtype": "bfloat16", "repeats": 1, **settings_of("memory")}
USES = ("prefill_peak_bytes", "decode_peak_bytes", "kv_cache_bytes", "activation_bytes")


class LiveMeter:
    """Reads a `LiveMemory`; the GPU has nothing else."""

    live: LiveMemory

    def __init__(self, device):
        self.device = device

    def allocated(self):
        return self.live.now

    def peak(self):
        return self.live.peak

    def restart(self):
        self.live.peak = self.live.now

    def reserved_peak(self):
        return self.live.peak + 1000

    def outside(self):
        return 500


@pytest.fixture
def fake_gpu(monkeypatch):
    """The CPU in place of a GPU, and `llama-tiny` and `gpt2-tiny`."""
    known = dict(architectures._found())
    for name, family in (("llama-tiny", "llama-3.1-8b"), ("gpt2-tiny", "gpt2")):
        sizes = {"layers": 2, "hidden": 64, "ffn": 256, "heads": 4, "vocab": 96, "context": 128}
        shape = replace(known[family].shape, head_dim=16, kv_heads=2 if family != "gpt2" else 4, **sizes)
        known[name] = replace(known[family], name=name, shape=shape)
    monkeypatch.setattr(architectures, "_found", lambda: known)
    monkeypatch.setattr(memory, "gpu_for", lambda suite: torch.device("cpu"))
    monkeypatch.setattr(memory, "Meter", LiveMeter)
    monkeypatch.setattr(weights_file, "CHUNK", 1024)  # waits on the host, which is the GPU here
    for name in ("llama-tiny", "gpt2-tiny"):  # what is imported and made once is no model
        model = random_model(name, Sparse(sparsity=0.5, block=16), 0, torch.bfloat16, torch.device("cpu"))
        blast.fuse(model)(torch.zeros(1, 2, dtype=torch.long))
    with LiveMemory() as LiveMeter.live:
        yield


def measure(architecture="llama-tiny", sparsity=0.75, **more):
    return memory.measure(architecture, sparsity, (16, 16), 0, SETTINGS | more)


def value(metrics, provider, metric, **where):
    (found,) = [
        entry
        for entry in metrics
        if entry["provider"] == provider and entry["metric"] == metric and where.items() <= entry.items()
    ]
    return found


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_gives_one_sentence():
    with pytest.raises(BlastError, match=r"'memory' needs a GPU and .* no CUDA GPU; .*blast job"):
        memory.measure("llama-3.2-1b", 0.9, (64, 64), 0, SETTINGS)


@pytest.mark.parametrize("architecture", ["llama-tiny", "gpt2-tiny"])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_each_value_stands_beside_the_computed_one(fake_gpu, architecture, checkpoint):
    metrics = measure(architecture, checkpoint=checkpoint, batches=(1, 3))
    for provider in ("dense_eager", "ours"):
        weights, load = (value(metrics, provider, metric) for metric in ("weights_bytes", "load_peak_bytes"))
        computed = weights["setting"]["computed"]
        assert load["setting"]["computed"] == computed
        # The row lists are estimated, and leave out dead rows.
        assert weights["value"] == pytest.approx(computed, rel=0.05)
        # `fuse` runs an MLP of each kind once with three tokens.
        assert weights["value"] <= load["value"] <= weights["value"] + 16_000
        index = value(metrics, provider, "index_bytes")
        assert 0.4 * index["setting"]["computed"] <= index["value"] <= index["setting"]["computed"]
        for batch in (1, 3):
            found = {use: value(metrics, provider, use, batch=batch, tokens=64) for use in USES}
            cache = found["kv_cache_bytes"]
            assert cache["value"] == cache["setting"]["computed"]
            for use in ("prefill_peak_bytes", "decode_peak_bytes"):
                # GPT-2's activation has more temporaries; inside a fused MLP nothing is seen on a CPU.
                assert found[use]["value"] == pytest.approx(found[use]["setting"]["computed"], rel=0.25), use
    assert all(entry["unit"] == "bytes" and entry["better"] == "lower" for entry in metrics)


def test_phases_and_uses_of_one_run_add_up(fake_gpu):
    metrics = measure(tokens=[96], decode_steps=8, batches=(2,))
    for provider in ("dense_eager", "ours"):
        bytes_of = {entry["metric"]: entry["value"] for entry in metrics if entry["provider"] == provider}
        assert bytes_of["load_peak_bytes"] >= 0.95 * bytes_of["weights_bytes"]
        prefilled = bytes_of["kv_cache_bytes"] * 88 / 96
        parts = bytes_of["weights_bytes"] + prefilled + bytes_of["activation_bytes"]
        assert bytes_of["prefill_peak_bytes"] == pytest.approx(parts, rel=0.02)
        assert bytes_of["decode_peak_bytes"] >= 0.95 * (bytes_of["weights_bytes"] + bytes_of["kv_cache_bytes"])
        assert bytes_of["decode_peak_bytes"] < bytes_of["prefill_peak_bytes"]
        assert bytes_of["outside_bytes"] == 500
        assert bytes_of["reserved_peak_bytes"] == pytest.approx(bytes_of["prefill_peak_bytes"] + 1000, rel=0.02)
    dense, ours = (value(metrics, provider, "weights_bytes")["value"] for provider in ("dense_eager", "ours"))
    blocks = 2 * 3 * (64 * 256 * 2) * 0.75
    assert dense - ours == pytest.approx(blocks, rel=0.1)
    assert value(metrics, "dense_eager", "index_bytes")["value"] == 0 < value(metrics, "ours", "index_bytes")["value"]


def test_a_long_prompt_runs_in_pieces_that_hold_less(fake_gpu):
    whole, pieces = (measure("llama-tiny", tokens=[128], tokens_at_once=tokens) for tokens in (128, 16))
    for provider in ("dense_eager", "ours"):
        one, other = (value(found, provider, "activation_bytes") for found in (whole, pieces))
        assert other["value"] < 0.5 * one["value"]
        assert other["setting"]["computed"] < 0.5 * one["setting"]["computed"]
        caches = [value(found, provider, "kv_cache_bytes")["value"] for found in (whole, pieces)]
        assert caches[0] == caches[1]


def test_sequences_are_cut_to_the_context_of_the_model(fake_gpu):
    assert {entry["tokens"] for entry in measure(tokens=[4096])} == {None, 128}


def test_what_does_not_fit_is_not_run_and_the_rest_is(fake_gpu, monkeypatch):
    generate = memory.MemoryRun._generate

    def out_of_memory(self, model, batch, length, before):
        if batch == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(self, model, batch, length, before)

    monkeypatch.setattr(memory.MemoryRun, "_generate", out_of_memory)
    metrics = measure(batches=(2, 1))
    lost = value(metrics, "ours", "prefill_peak_bytes", batch=2)
    assert (lost["status"], lost["value"]) == ("not run", None)
    assert "does not fit" in lost["setting"]["cause"]
    assert value(metrics, "ours", "prefill_peak_bytes", batch=1)["value"] > 0

    def too_large(self, device):
        if self.sparse is None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loaded(self, device)

    loaded = memory.MemoryRun._loaded
    monkeypatch.setattr(memory.MemoryRun, "_loaded", too_large)
    metrics = measure()
    assert [entry["metric"] for entry in metrics if entry["provider"] == "dense_eager"] == ["load_peak_bytes"]
    assert value(metrics, "ours", "decode_peak_bytes")["value"] > 0


def test_an_output_that_is_not_finite_is_an_error(fake_gpu, monkeypatch):
    made = memory.random_model

    def broken(*arguments):
        model = made(*arguments)
        model.lm_head.weight.data.fill_(float("nan"))
        return model

    monkeypatch.setattr(memory, "random_model", broken)
    with pytest.raises(BlastError, match=r"logits of 'llama-tiny' .* are not finite"):
        measure()


def test_a_model_that_cannot_be_computed_is_refused_before_it_is_built(fake_gpu, monkeypatch):
    monkeypatch.setattr(memory, "random_model", lambda *_: pytest.fail("built"))
    with pytest.raises(BlastError, match="not for 'vit-b-16'"):
        measure("vit-b-16")


@pytest.mark.parametrize("tied", [False, True])
def test_a_random_sparse_model_is_never_dense(tied, monkeypatch):
    known = dict(architectures._found())
    shape = replace(
        known["llama-3.1-8b"].shape, layers=2, hidden=64, ffn=1024, heads=4, kv_heads=2, head_dim=16, vocab=96
    )
    known["llama-tiny"] = replace(known["llama-3.1-8b"], name="llama-tiny", shape=shape)
    monkeypatch.setattr(architectures, "_found", lambda: known)
    sparse = Sparse(sparsity=0.875, block=16, tied=tied)
    with LiveMemory() as live:
        model = random_model("llama-tiny", sparse, 0, torch.bfloat16, torch.device("cpu"))
        held = blast.model_bytes(model).weights
    assert live.peak < 1.2 * held + 4 * 1024 * 64, "one float32 matrix at most, which the constructor asks for"
    layers = sparse_layers(model)
    assert len(layers) == 6
    for layer in layers.values():
        grid = layer.index.index.grid
        assert layer.index.index.nnz == keep_count(grid[0] * grid[1], 0.875)
        assert layer.values.dtype == torch.bfloat16
        assert 0.015 < layer.values.float().std() < 0.025
    assert (layers["model.layers.0.mlp.gate_proj"].index is layers["model.layers.0.mlp.up_proj"].index) == tied
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    logits = model(torch.arange(8)[None]).logits
    assert logits.isfinite().all()
    assert logits.std() > 0
    again = random_model("llama-tiny", sparse, 0, torch.bfloat16, torch.device("cpu"))
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), again.parameters(), strict=True))


def test_tied_weights_stay_tied_and_masks_depend_on_the_seed(fake_gpu):
    model = random_model("gpt2-tiny", None, 0, torch.float16, torch.device("cpu"))
    assert model.lm_head.weight is model.transformer.wte.weight
    sparse = Sparse(sparsity=0.5, block=(16, 32))
    one, two, other = (uniform_masks(model, sparse, seed) for seed in (0, 0, 1))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_a_point_of_the_suite_becomes_rows_with_the_computed_values(fake_gpu):
    point = Point(
        id="memory-llama-tiny.bfloat16.s75.b16.seed0", grid="default", stage="benchmark", architecture="llama-tiny",
        method="blast", sparsity=0.75, block=(16, 16), benchmark={**SETTINGS, "suite": "memory"},
    )  # fmt: skip
    record = make_record(point, status="ok", result=run_benchmark_point(point), run=run_part())
    table = as_table(record_rows(record))
    assert set(table["suite"]) == {"memory"}
    peaks = table[table["metric"] == "prefill_peak_bytes"].set_index("provider")
    assert list(peaks.index) == ["dense_eager", "ours"]
    assert (peaks["value"] / peaks["computed"]).between(0.75, 1.25).all()
    weights = table[table["metric"] == "weights_bytes"].set_index("provider")["value"]
    assert ratios(table, "weights_bytes")["ratio"].tolist() == [weights["dense_eager"] / weights["ours"]]


@pytest.mark.gpu
def test_a_gpu_holds_what_is_computed():
    settings = SETTINGS | {"tokens": [1024], "batches": (4,), "checkpoint": True}
    metrics = memory.measure("gpt2", 0.9, (64, 64), 0, settings)
    for provider in ("dense_eager", "ours"):
        weights, load = (value(metrics, provider, metric) for metric in ("weights_bytes", "load_peak_bytes"))
        assert weights["value"] == pytest.approx(weights["setting"]["computed"], rel=0.02)
        assert load["value"] < 1.1 * weights["value"]
        found = {use: value(metrics, provider, use, batch=4, tokens=1024) for use in USES}
        assert found["kv_cache_bytes"]["value"] == found["kv_cache_bytes"]["setting"]["computed"]
        for use in ("prefill_peak_bytes", "decode_peak_bytes"):
            assert found[use]["value"] == pytest.approx(found[use]["setting"]["computed"], rel=0.3), use
