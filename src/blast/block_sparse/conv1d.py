"""The Conv1D layer of transformers, which stores its weight transposed."""

from __future__ import annotations

from torch import Tensor, nn


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is the Conv1D of transformers: a linear layer that stores `[in, out]`."""
    # All base classes are searched, because `fully_shard` replaces the class of a module by a subclass.
    named = any(kind.__name__ == "Conv1D" for kind in type(module).__mro__)
    if not named or not hasattr(module, "nf"):
        return False  # before its weight is read: that of a block-sparse layer is computed at each access
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() == 2
