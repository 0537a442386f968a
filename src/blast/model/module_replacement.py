"""Layers of a model found and replaced by others, wherever they hang."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from blast.block_sparse.conv1d import is_conv1d
from blast.errors import BlastError
from blast.layers.block_linear import BlockLinear


def unwrapped(model: nn.Module) -> nn.Module:
    """The model itself where it is wrapped for compilation or data-parallel training, so that names are its own."""
    model = getattr(model, "_orig_mod", model)
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def replace_modules(model: nn.Module, replacements: Mapping[int, nn.Module]) -> None:
    """Puts other modules in the place of those named by `id`, wherever they hang in the model."""
    if id(model) in replacements:
        raise BlastError("the model is itself one linear layer; wrap it, for instance in torch.nn.Sequential.")
    # A layer may hang in several places (weight sharing across layers).
    for parent in list(model.modules()):
        for child, module in parent._modules.items():
            if id(module) in replacements:
                parent._modules[child] = replacements[id(module)]


def is_dense(module: nn.Module) -> bool:
    """Whether a layer can be replaced without changing what it computes: a plain linear layer with its own weight."""
    if module._parameters.get("weight") is None:
        return False
    # A subclass that computes something else (quantised, with adapters) would be replaced by something it is not.
    own = isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward
    return own or is_conv1d(module)


def sparse_layers(model: nn.Module) -> dict[str, BlockLinear]:
    """The block-sparse matrices of a model by module name, each once."""
    named = unwrapped(model).named_modules()
    return {name: module for name, module in named if isinstance(module, BlockLinear)}
