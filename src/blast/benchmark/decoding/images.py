"""Classification of images by a vision transformer, dense and with the masks of a point."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from blast import architectures
from blast.benchmark.decoding.models import check_logits, masks_for, random_model, shares, sparse_model
from blast.benchmark.timing.cuda_graphs import replay_of, time_in_turn
from blast.benchmark.timing.interleaved import Timing
from blast.block_sparse.blocks import BlockShape
from blast.model.memory import model_bytes

EAGER, COMPILED, OURS = "dense_eager", "dense_compiled", "ours"
# Images with which the logits are checked.
CHECKED = 2

Entry = dict[str, Any]


@torch.no_grad()
def classify(
    architecture: str, sparsity: float, block: tuple[int, int], seed: int, settings: dict[str, Any],
    device: torch.device,
) -> list[Entry]:  # fmt: skip
    """Times a vision transformer with random weights.

    Args:
        architecture: Name of the architecture.
        sparsity: Share of empty blocks of its MLPs.
        block: Block shape `[out, in]`.
        seed: Seed of weights, masks and images.
        settings: As for `inference.measure`; `tokens` says how many images are classified together.
        device: Where to.

    Returns:
        By provider and number of images: `call_latency`, ms, of a call of the model as users make it, dense and ours;
        `image_latency`, ms, and `image_rate`, images/s, of the compiled model in a CUDA graph; `weight_bytes`.

    Raises:
        BlastError: without masks of the kind that is asked for, or if our logits are wrong.
    """
    started = time.monotonic()
    dtype = getattr(torch, settings["dtype"])
    ours = random_model(architecture, dtype, device, seed)
    drawn = masks_for(ours, architecture, sparsity, block, seed, settings)
    ours = sparse_model(ours, drawn.masks)
    generator = torch.Generator().manual_seed(seed)
    error = check_logits(
        architecture, drawn.masks, BlockShape(*block), ours, _images(architecture, CHECKED, ours, generator), seed
    )
    facts = drawn.facts | {"logit_error": error, "weights": "random"}
    facts |= {f"{name}_share": share for name, share in shares(ours, drawn.masks).items()}
    dense = random_model(architecture, dtype, device, seed + 1)
    torch.compiler.reset()
    how = {key: settings[key] for key in ("autotune", "mask")}
    entries: list[Entry] = []

    def add(name: str, images: int, metric: str, unit: str, value: float | None, **more: Any) -> None:
        about = how | (facts if name == OURS else {"weights": "random"}) | more.pop("setting", {})
        entries.append({
            "metric": metric, "task": None, "unit": unit, "value": value, "low": None, "high": None, "spread": None,
            "n": None, "better": "lower", "provider": name, "tokens": images, "batch": images,
            "dtype": settings["dtype"], "setting": about,
        } | more)  # fmt: skip

    for number in settings["tokens"]:
        if time.monotonic() - started >= settings["seconds"]:
            missing = {"status": "not run", "unfinished": True}
            for name in (COMPILED, OURS):
                cause = {"cause": "the point ran out of time; raise 'seconds'"}
                add(name, number, "image_latency", "ms", None, setting=cause, **missing)
            continue
        images = _images(architecture, number, ours, generator)
        calls = {name: (_call(model, images), 1) for name, model in ((EAGER, dense), (OURS, ours))}
        for name, timing in time_in_turn(calls, settings["repeats"], settings["seconds"] / 20).items():
            add(name, number, "call_latency", "ms", timing.median, **_spread(timing))
        graphs = {
            name: (replay_of(_call(_compiled(model, settings["autotune"]), images)), 1)
            for name, model in ((COMPILED, dense), (OURS, ours))
        }
        for name, timing in time_in_turn(graphs, settings["repeats"], settings["seconds"] / 20).items():
            add(name, number, "image_latency", "ms", timing.median, **_spread(timing))
            rate = {"low": 1e3 * number / timing.high, "high": 1e3 * number / timing.low, "better": "higher"}
            add(name, number, "image_rate", "images/s", 1e3 * number / timing.median, **_spread(timing) | rate)
        for name, model in ((COMPILED, dense), (OURS, ours)):
            add(name, number, "weight_bytes", "bytes", model_bytes(model).weights)
    return entries


def _images(architecture: str, number: int, model: nn.Module, generator: torch.Generator) -> Tensor:
    """Random images `[number, channels, side, side]` in the dtype and on the device of a model."""
    shape, first = architectures.get(architecture).shape, next(model.parameters())
    return torch.randn(number, shape.channels, shape.image, shape.image, generator=generator).to(first)


def _compiled(model: nn.Module, autotune: bool) -> Callable[[Tensor], Any]:
    return torch.compile(model, dynamic=False, mode="max-autotune-no-cudagraphs" if autotune else None)


def _call(run: Callable[[Tensor], Any], images: Tensor) -> Callable[[], None]:
    def call() -> None:
        run(images)

    return call


def _spread(timing: Timing) -> dict[str, Any]:
    return {"low": timing.low, "high": timing.high, "spread": "q20-80", "n": timing.n}
