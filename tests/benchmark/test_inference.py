"""The suite `inference` without a GPU: tiny models with a fake clock."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from blast import architectures
from blast.benchmark import inference
from blast.benchmark.decoding import models, parts
from blast.benchmark.settings import settings_of
from blast.benchmark.timing.energy import Energy
from blast.benchmark.timing.interleaved import Timing
from blast.errors import BlastError
from blast.sparsity.one_shot import apply_masks_

SETTINGS = {
    "tokens": [1, 3],
    "dtype": "float32",
    "repeats": 3,
    **settings_of("inference", {"prompts": [8, 16], "steps": 4, "new_tokens": 6, "attention": "sdpa"}),
}
MILLISECONDS = {"dense_eager": 10.0, "dense_compiled": 4.0, "ours": 2.0, "mlp": 1.0, "head": 0.25}


@pytest.fixture
def fake_gpu(monkeypatch):
    known = dict(architectures._found())
    for family in ("gpt2", "llama"):
        nano = known[f"{family}-nano"]
        heads = {"heads": 2, "kv_heads": 2 if family == "gpt2" else 1}
        shape = replace(nano.shape, layers=2, hidden=32, ffn=64, vocab=96, context=64, **heads)
        known[f"{family}-tiny"] = replace(nano, name=f"{family}-tiny", shape=shape)
    monkeypatch.setattr(architectures, "_found", lambda: known)

    def clock(rounds, repeats, seconds):
        for play, _ in rounds.values():
            play()
        return {name: Timing(*[MILLISECONDS[name]] * 3, repeats) for name in rounds}

    monkeypatch.setattr(inference, "gpu_for", lambda suite: torch.device("cpu"))
    for module in (inference, parts):
        monkeypatch.setattr(module, "time_in_turn", clock)
        monkeypatch.setattr(module, "replay_of", lambda call: call)
    # Compiled code gives the same in `tests/generation`, and takes long.
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


def measure(architecture="llama-tiny", sparsity=0.5, **more):
    return inference.measure(architecture, sparsity, (16, 16), 0, SETTINGS | more)


def values(metrics, metric, tokens=1, prompt=8):
    return {
        entry["provider"]: entry["value"]
        for entry in metrics
        if (entry["metric"], entry["tokens"], entry["setting"]["prompt"]) == (metric, tokens, prompt)
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_gives_an_error_of_one_sentence():
    with pytest.raises(BlastError, match=r"'inference' needs a GPU and .* no CUDA GPU; .*blast job"):
        inference.measure("gpt2", 0.9, (64, 64), 0, SETTINGS)


@pytest.mark.parametrize("architecture", ["gpt2-tiny", "llama-tiny"])
def test_dense_and_ours_are_timed_for_each_number_of_sequences_and_prompt(fake_gpu, architecture):
    metrics = measure(architecture)
    for tokens in (1, 3):
        for prompt in (8, 16):
            assert values(metrics, "latency", tokens, prompt) == {
                name: MILLISECONDS[name] for name in ("dense_eager", "dense_compiled", "ours")
            }
            assert values(metrics, "throughput", tokens, prompt)["ours"] == 1e3 * tokens / 2
            assert set(values(metrics, "first_token_latency", tokens, prompt)) == {
                "dense_eager", "dense_compiled", "ours"
            }  # fmt: skip
    assert values(metrics, "time_rest") == {"dense_compiled": 2.75, "ours": 0.75}
    assert set(values(metrics, "generate_rate")) == {"dense_eager", "ours"}
    assert set(values(metrics, "fast_generate_rate")) == {"dense_compiled", "ours"}
    bytes_held = values(metrics, "weight_bytes")
    assert bytes_held["ours"] < bytes_held["dense_compiled"] == bytes_held["dense_eager"]
    ours = next(entry for entry in metrics if entry["provider"] == "ours" and entry["metric"] == "latency")
    assert ours["setting"]["logit_error"] < 1e-3
    assert ours["setting"]["live_share"] == pytest.approx(0.5)
    assert ours["setting"]["computed_share"] <= 0.5
    assert ours["setting"]["weights"] == "random"


def test_the_start_of_an_mlp_is_timed_on_the_cpu_dense_and_ours(fake_gpu):
    metrics = [entry for entry in measure(parts=True) if entry["metric"] == "mlp_host_time"]
    assert [(entry["provider"], entry["tokens"]) for entry in metrics] == [
        (name, count) for count in (1, 3) for name in ("dense_eager", "ours")
    ]
    assert all(0 < entry["low"] <= entry["value"] <= entry["high"] for entry in metrics)
    assert {(entry["unit"], entry["n"]) for entry in metrics} == {("ms", 5)}
    assert not [entry for entry in measure(parts=False) if entry["metric"] == "mlp_host_time"]


def test_energy_that_is_not_available_is_said_so(fake_gpu):
    entries = [entry for entry in measure(generate=False, parts=False) if entry["metric"] == "energy"]
    assert {entry["provider"] for entry in entries} == {"dense_compiled", "ours"}
    for entry in entries:
        assert (entry["value"], entry["status"]) == (None, "not run")
        assert "not available" in entry["setting"]["cause"]


def test_energy_is_for_a_token(fake_gpu, monkeypatch):
    monkeypatch.setattr(inference.EnergyMeter, "measure", lambda self, work: (Energy(480.0, 2.0, 70.0, "counter"), 10))
    metrics = measure(generate=False, parts=False)
    # 10 rounds of 4 steps of 3 sequences.
    assert values(metrics, "energy", tokens=3)["ours"] == 4.0
    assert values(metrics, "power_idle", tokens=3)["ours"] == 70.0


def test_wrong_logits_stop_the_point(fake_gpu, monkeypatch):
    real = models.sparse_model

    def broken(model, masks):
        sparse = real(model, masks)
        sparse.model.layers[0].mlp.down_proj.values.data[0] *= 5
        return sparse

    monkeypatch.setattr(inference, "sparse_model", broken)
    with pytest.raises(BlastError, match=r"'llama-tiny' is off by .* no timing was recorded"):
        measure()


def test_a_prompt_past_the_context_is_one_sentence(fake_gpu):
    with pytest.raises(BlastError, match=r"prompt of 62 tokens and 4 steps are more than the 64 of 'gpt2-tiny'; lower"):
        measure("gpt2-tiny", prompts=[8, 62])


def test_an_encoder_does_not_generate_tokens(fake_gpu):
    with pytest.raises(BlastError, match="'minilm' does not generate tokens; give a language model or a vision"):
        measure("minilm")


def test_without_trained_masks_the_error_names_the_folder(fake_gpu, tmp_path):
    with pytest.raises(BlastError, match=r"no trained masks of 'llama-tiny' at sparsity 0.5 .*16x16"):
        measure(mask="trained", masks_folder=str(tmp_path))


def test_a_point_out_of_time_is_tried_again(fake_gpu):
    metrics = measure(seconds=1e-9)
    assert {entry["status"] for entry in metrics} == {"not run"}
    assert all(entry["unfinished"] for entry in metrics)


def test_bytes_of_a_step_are_those_of_what_it_reads(fake_gpu):
    model = models.random_model("llama-tiny", torch.float32, torch.device("cpu"), 0)
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    held = sum(parameter.nbytes for parameter in model.parameters())
    dense = models.bytes_of_step(model)
    assert dense - held == sum(buffer.nbytes for buffer in model.buffers()) - (0 if tied else 96 * 32 * 4)
    masks = models.random_model_masks(model, 0.75, (16, 16), 0, "uniform")
    apply_masks_(model, masks, (16, 16))
    mlp = sum(mask.numel() for mask in masks.values()) * 16 * 16 * 4
    sparse = models.sparse_model(model, masks)
    share = models.shares(sparse, masks)
    lists = sum(
        part.nbytes
        for module in sparse.modules()
        if hasattr(module, "row_lists")
        for part in (module.row_lists.gate_up, module.row_lists.down)
    )
    assert models.bytes_of_step(sparse) == pytest.approx(dense - mlp + share["computed"] * mlp + lists)
    assert share["live"] == pytest.approx(0.25)
