"""Replaces a parameter of an optimizer by its other form (dense or live blocks), and converts its state."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from blast.errors import BlastError

# The update of one element depends on other elements, so that training live blocks only would change the result.
MIXING = ("Adafactor", "LBFGS", "Muon", "SparseAdam")


def check_optimizer(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
    """Checks that an optimizer can train the live blocks of a parameter only.

    Args:
        optimizer: The optimizer.
        parameters: Its dense parameters that will be replaced.

    Raises:
        BlastError: if its update mixes elements, or a state value is neither one number nor a tensor of the
            parameter's shape.
    """
    # A wrapper (that of accelerate) forwards state and groups, but has another class name.
    name = type(getattr(optimizer, "optimizer", optimizer)).__name__
    remedy = 'use AdamW, SGD or another optimizer that treats each element alone, or execution="masked"'
    if name in MIXING:
        raise BlastError(f"{name} cannot train live blocks only, because its update mixes elements; {remedy}.")
    for parameter in parameters:
        for key, value in optimizer.state.get(parameter, {}).items():
            fits = value is None or isinstance(value, bool | int | float | str)
            if isinstance(value, Tensor):
                fits = value.shape == parameter.shape or value.numel() == 1
            if not fits:
                shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise BlastError(
                    f"{name} keeps '{key}' ({shape}) for a parameter of {list(parameter.shape)}, which cannot be cut "
                    f"into blocks; {remedy}."
                )


def replace_parameter(
    optimizer: torch.optim.Optimizer, old: nn.Parameter, new: nn.Parameter, convert: Callable[[Tensor], Tensor]
) -> None:
    """Replaces a parameter in its optimizer group, and converts its state.

    Args:
        optimizer: Any optimizer of torch. One without `old` is not changed.
        old: The parameter to remove.
        new: The parameter to put in its place.
        convert: Converts a state tensor from the shape of `old` to the shape of `new`. Other state is kept.
    """
    for group in optimizer.param_groups:
        group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
    state = optimizer.state.pop(old, None)
    if state is not None:
        optimizer.state[new] = {
            key: convert(value) if isinstance(value, Tensor) and value.shape == old.shape else value
            for key, value in state.items()
        }
