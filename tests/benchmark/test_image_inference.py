"""The suite `inference` of a vision transformer, without a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_inference import MILLISECONDS, SETTINGS, fake_gpu  # noqa: F401

from blast import architectures
from blast.benchmark import inference
from blast.benchmark.decoding import images
from blast.errors import BlastError


@pytest.fixture
def measure(fake_gpu, monkeypatch):  # noqa: F811
    nano = architectures.get("vit-nano")
    tiny = replace(nano, name="vit-tiny", shape=replace(nano.shape, layers=2, image=16, channels=3, classes=5))
    found = architectures._found() | {"vit-tiny": tiny}
    monkeypatch.setattr(architectures, "_found", lambda: found)
    for name in ("time_in_turn", "replay_of"):
        monkeypatch.setattr(images, name, getattr(inference, name))
    return lambda **more: inference.measure("vit-tiny", 0.5, (16, 16), 0, SETTINGS | more)


def values(metrics, metric, count):
    rows = [entry for entry in metrics if (entry["metric"], entry["tokens"]) == (metric, count)]
    return {entry["provider"]: entry["value"] for entry in rows}


def test_calls_and_compiled_passes_are_timed_dense_and_ours(measure):
    metrics = measure()
    for count in SETTINGS["tokens"]:
        times = {name: values(metrics, f"{name}_latency", count) for name in ("call", "image")}
        assert times["call"] == {name: MILLISECONDS[name] for name in ("dense_eager", "ours")}
        assert times["image"] == {name: MILLISECONDS[name] for name in ("dense_compiled", "ours")}
        assert values(metrics, "image_rate", count) == {"dense_compiled": 250.0 * count, "ours": 500.0 * count}
        sizes = values(metrics, "weight_bytes", count)
        assert sizes["ours"] < sizes["dense_compiled"]
    rate = next(entry for entry in metrics if entry["metric"] == "image_rate")
    assert (rate["unit"], rate["better"]) == ("images/s", "higher")
    assert rate["low"] <= rate["value"] <= rate["high"]
    ours = next(entry for entry in metrics if entry["provider"] == "ours")
    assert 0 < ours["setting"]["logit_error"] < 1e-4
    assert ours["setting"]["live_share"] == 0.5


def test_images_that_time_did_not_suffice_for_are_said(measure):
    metrics = measure(seconds=0.0)
    assert {entry["status"] for entry in metrics} == {"not run"}
    assert all(entry["unfinished"] and "ran out of time" in entry["setting"]["cause"] for entry in metrics)


def test_our_model_must_classify_as_masked_dense_does(measure, monkeypatch):
    plain = images.sparse_model

    def broken(model, masks):
        made = plain(model, masks)
        with torch.no_grad():
            made.heads[0].weight.mul_(1.1)
        return made

    monkeypatch.setattr(images, "sparse_model", broken)
    with pytest.raises(BlastError, match=r"'vit-tiny' is off by .* no timing was recorded"):
        measure()
