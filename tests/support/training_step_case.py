"""The suite `training_step` on tiny models, on the CPU instead of a GPU, with a fake clock and fake bytes."""

from __future__ import annotations

from dataclasses import replace

import torch

from blast import architectures
from blast.benchmark import training_step
from blast.benchmark.settings import settings_of
from blast.benchmark.timing.interleaved import Timing

SETTINGS = {
    "tokens": [64],
    "dtype": "bfloat16",
    "repeats": 3,
    **settings_of("training_step"),
    "length": 16,
    "compiled": False,
}
MILLISECONDS = {"dense_compiled": 10.0, "ours": 4.0, "masked_dense": 12.0,
                "attention": 1.0, "mlp": 1.5, "optimizer": 0.5}  # fmt: skip


class FakeMeter:
    """Each reading is one byte larger."""

    def __init__(self, device):
        self.read = 0

    def allocated(self):
        self.read += 1
        return self.read

    peak = allocated

    def restart(self):
        pass


def use_fake_gpu(monkeypatch):
    """Makes the suite use the CPU with a fake clock, and adds `gpt2-tiny`, `llama-tiny` and `vit-tiny`."""
    known = dict(architectures._found())
    for family in ("gpt2", "llama"):
        nano = known[f"{family}-nano"]
        shape = replace(nano.shape, layers=2, hidden=32, ffn=64, heads=2, kv_heads=2, vocab=96, context=64)
        known[f"{family}-tiny"] = replace(nano, name=f"{family}-tiny", shape=shape)
    nano = known["vit-nano"]
    shape = replace(nano.shape, layers=2, hidden=32, ffn=64, heads=2, image=12, patch=4, classes=5, channels=3)
    known["vit-tiny"] = replace(nano, name="vit-tiny", shape=replace(shape, patches=None))
    monkeypatch.setattr(architectures, "_found", lambda: known)

    def clock(rounds, repeats, seconds):
        for play, _ in rounds.values():
            play()
        return {name: Timing(*[MILLISECONDS[name]] * 3, repeats) for name in rounds}

    monkeypatch.setattr(training_step, "gpu_for", lambda suite: torch.device("cpu"))
    monkeypatch.setattr(training_step, "Meter", FakeMeter)
    monkeypatch.setattr(training_step, "time_in_turn", clock)


def measure(architecture="gpt2-tiny", sparsity=0.5, **more):
    return training_step.measure(architecture, sparsity, (16, 16), 0, SETTINGS | more)


def values(metrics, metric):
    """The values of a metric, by provider."""
    return {entry["provider"]: entry["value"] for entry in metrics if entry["metric"] == metric}
