"""A state dict that does not fit the masks of a sparse model is refused before any of it is loaded."""

from __future__ import annotations

from typing import Any

from torch import nn

from blast.layers.block_linear import BlockLinear
from blast.layers.sparse_experts import SparseExperts


def check_state_dicts(model: nn.Module) -> None:
    """Makes `load_state_dict` of a sparse model check all its layers before it changes the first one.

    Without it, each layer is checked only when it is its turn, and those before it have been loaded.
    """
    if not _handles(model):
        model.register_load_state_dict_pre_hook(_check)


def uncheck_state_dicts(model: nn.Module) -> None:
    """Undoes `check_state_dicts`."""
    for key in _handles(model):
        del model._load_state_dict_pre_hooks[key]


def _handles(model: nn.Module) -> list[int]:
    hooks = model._load_state_dict_pre_hooks.items()
    return [key for key, wrapper in hooks if getattr(wrapper, "hook", None) is _check]


def _check(model: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    for name, layer in model.named_modules(remove_duplicate=False):
        if isinstance(layer, BlockLinear | SparseExperts):
            layer.check_state_dict(state_dict, f"{prefix}{name}.")
