"""The suite `kernels` on the CPU instead of a GPU, with a fake clock."""

from __future__ import annotations

import torch

from blast.benchmark import kernels
from blast.benchmark.inputs import masks
from blast.benchmark.inputs.mlp import MlpSize
from blast.benchmark.providers import mlp_inference
from blast.benchmark.settings import settings_of
from blast.benchmark.timing import roofline
from blast.benchmark.timing.interleaved import Timing

SETTINGS = {"tokens": [3, 40], "dtype": "float32", "repeats": 3, **settings_of("kernels"), "compiled": False}
CEILINGS = roofline.Ceilings(memory=3e12, l2=7e12, flops=8e14, launch=1e-6)
SMALL = {
    True: MlpSize(64, 128, True, "silu", False, (16, 16), torch.float32),
    False: MlpSize(64, 128, False, "gelu", True, (16, 16), torch.float32),
}


def use_fake_gpu(monkeypatch):
    """Makes the suite use the CPU instead of a GPU, with a fake clock: a call of `ours` takes 1 ms, any other 10 ms."""
    machine = mlp_inference.Machine(torch.device("cpu"), 1000, CEILINGS)

    def clock(rounds, repeats, seconds):
        return {name: Timing(*[1.0 if name.startswith("ours ") else 10.0] * 3, repeats) for name in rounds}

    monkeypatch.setattr(kernels, "this_machine", lambda dtype: machine)
    monkeypatch.setattr(kernels, "capture", lambda candidate: candidate.call(candidate.sets - 1))
    monkeypatch.setattr(kernels, "time_in_turn", clock)

    def small(name, block, dtype, down_block):
        return SMALL["llama" in name]._replace(block=block, transposed_down=down_block == "transposed")

    monkeypatch.setattr(kernels, "mlp_size", small)


def measure(architecture="llama-nano", sparsity=0.8, **more):
    return kernels.measure(architecture, sparsity, (16, 16), 0, SETTINGS | more)


def latencies(metrics):
    return [entry for entry in metrics if entry["metric"] == "latency"]


def masks_of(size, tied=False, kind="uniform", sparsity=0.7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (size.hidden, size.ffn, size.gated, tied, sparsity, size.block)
    return masks.random_masks(kind, *shape, generator, size.down_block), generator
