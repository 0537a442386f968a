"""Runs a model in evaluation mode and restores its state afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Within the context: no dropout, frozen statistics, no key-value cache. The former state is restored after it."""
    before = {module: module.training for module in model.modules()}
    config = getattr(model, "config", None)
    caches = getattr(config, "use_cache", None)
    model.eval()
    if caches:
        # Nothing is generated, so a cache of keys and values would only take time and memory.
        config.use_cache = False
    try:
        yield model
    finally:
        if caches:
            config.use_cache = caches
        for module, training in before.items():
            module.training = training
