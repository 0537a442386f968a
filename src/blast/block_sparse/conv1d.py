"""The Conv1D of transformers: a linear layer that stores its weight transposed."""

from __future__ import annotations

from torch import nn


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is the Conv1D of transformers: a linear layer that stores `[in, out]`."""
    # By all its classes, since `fully_shard` makes a class of its own for a module that it was called on.
    named = any(kind.__name__ == "Conv1D" for kind in type(module).__mro__)
    return named and hasattr(module, "nf") and module.weight.dim() == 2
