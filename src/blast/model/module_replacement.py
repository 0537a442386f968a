"""Finds and replaces modules of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from torch import nn

from blast.errors import BlastError, check_argument
from blast.layers.block_linear import BlockLinear


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside `torch.compile` or `DistributedDataParallel`, whose module names have no prefix.

    Raises:
        BlastError: if it is no model.
    """
    check_argument("the model", model, nn.Module, "a torch.nn.Module")
    inner: nn.Module = getattr(model, "_orig_mod", model)
    if isinstance(inner, nn.parallel.DistributedDataParallel):
        inner = cast(nn.Module, inner.module)
    return inner


def replace_modules(model: nn.Module, replacements: Mapping[int, nn.Module]) -> None:
    """Replaces modules in all the places where a model uses them.

    Args:
        model: Changed in place.
        replacements: The new module for the `id` of each old one.

    Raises:
        BlastError: if the model itself is to be replaced.
    """
    if id(model) in replacements:
        raise BlastError("the model is itself one linear layer; wrap it, for instance in torch.nn.Sequential.")
    for parent in list(model.modules()):
        for child, module in parent._modules.items():
            if id(module) in replacements:
                parent._modules[child] = replacements[id(module)]


def weight_parameter(module: nn.Module) -> nn.Parameter:
    """The weight of a linear layer as it is stored.

    Raises:
        ValueError: if the module has no weight parameter.
    """
    weight = module._parameters.get("weight")
    if weight is None:
        raise ValueError(f"a {type(module).__name__} has no weight parameter.")
    return weight


def sparse_layers(model: nn.Module) -> dict[str, BlockLinear]:
    """The block-sparse matrices of a model by module name. A shared module appears once."""
    named = unwrapped(model).named_modules()
    return {name: module for name, module in named if isinstance(module, BlockLinear)}
