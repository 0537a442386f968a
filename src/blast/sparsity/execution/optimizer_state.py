"""A parameter of an optimizer replaced by another form of itself, with its state in that form."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from blast.errors import BlastError

# Their update of one element depends on others, so that the live blocks alone would be trained otherwise.
MIXING = ("Adafactor", "LBFGS", "Muon", "SparseAdam")


def check_optimizer(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
    """Refuses an optimizer that cannot go on with the live blocks of a parameter.

    Raises:
        BlastError: if its state of a parameter is no tensor of the parameter's shape, nor one number.
    """
    # A wrapper (that of accelerate) passes state and groups on, but has a name of its own.
    name = type(getattr(optimizer, "optimizer", optimizer)).__name__
    remedy = 'use AdamW, SGD or another that treats each element alone, or execution="masked"'
    if name in MIXING:
        raise BlastError(f"{name} cannot train live blocks alone, since its update mixes elements; {remedy}.")
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
    """Puts a parameter in the place of another, in its group and with its state.

    Args:
        optimizer: Any optimizer of torch; one that does not hold `old` is left as it is.
        old: The parameter that goes.
        new: The one that comes.
        convert: Makes a state tensor of the shape of `old` one of the shape of `new`; other state is kept as it is.
    """
    for group in optimizer.param_groups:
        group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
    state = optimizer.state.pop(old, None)
    if state is not None:
        optimizer.state[new] = {
            key: convert(value) if isinstance(value, Tensor) and value.shape == old.shape else value
            for key, value in state.items()
        }
