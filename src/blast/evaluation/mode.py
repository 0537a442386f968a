"""Runs a model in evaluation mode and puts it back as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Dropout off, statistics frozen and no key-value cache inside; afterwards everything is as it was before."""
    before = {module: module.training for module in model.modules()}
    config = getattr(model, "config", None)
    caches = getattr(config, "use_cache", None)
    model.eval()
    if caches:
        # Keys and values are of no use when nothing is generated; without them a batch takes less time and memory.
        config.use_cache = False
    try:
        yield model
    finally:
        if caches:
            config.use_cache = caches
        for module, training in before.items():
            module.training = training
