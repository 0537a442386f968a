"""A matrix of a model, its MLP and its layer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from blast.block_sparse.conv1d import is_conv1d
from blast.model.eligibility import shape_of


def layer_of(name: str) -> tuple[str | None, int | None]:
    """Path and index of the layer of a matrix, read from its name; None twice if it is in no layer.

    The layer is the first component that is a number (`model.layers.3`) or ends in `_` and a number
    (`encoder_layer_3`); the matrix's own name counts only as a bare number (its place in a Sequential).
    """
    parts = name.split(".")
    for place, part in enumerate(parts):
        found = re.fullmatch(r"(?:.*_)?(\d+)", part)
        if found and (place < len(parts) - 1 or part.isdigit()):
            return ".".join(parts[: place + 1]), int(found.group(1))
    return None, None


@dataclass(frozen=True)
class Target:
    """One matrix of a model, found to be pruned.

    Attributes:
        name: Its module's name as in `model.named_modules()`.
        module: The linear layer itself. `blast.model.eligibility.obstacle` says whether it can be pruned.
        role: `gate`, `up`, `down` (of a gated MLP), `fc1`, `fc2` (of a plain one), `attention` or `other`.
        mlp: Name of its MLP, or None.
    """

    name: str
    module: nn.Module
    role: str
    mlp: str | None

    @property
    def transposed(self) -> bool:
        """Whether the module stores `[in, out]` (Conv1D)."""
        return is_conv1d(self.module)

    @property
    def layer(self) -> int | None:
        """Index of its layer, read from its name, or None."""
        return layer_of(self.name)[1]

    @property
    def layer_path(self) -> str | None:
        """Name of its layer, ending with the index (`model.layers.3`), or None."""
        return layer_of(self.name)[0]

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter as the module stores it."""
        return cast(nn.Parameter, self.module.weight)

    @property
    def shape(self) -> tuple[int, int]:
        """`(out, in)`."""
        return shape_of(self.module)

    def as_out_in(self, tensor: Tensor) -> Tensor:
        """View `[out, in]` of a tensor stored like the parameter (a gradient, a moment)."""
        return tensor.t() if self.transposed else tensor

    @property
    def weight(self) -> Tensor:
        """A detached view `[out, in]` of the weight. Writing to it changes the model."""
        return self.as_out_in(self.parameter.detach())

    @property
    def gradient(self) -> Tensor | None:
        """The gradient as a view `[out, in]`, or None before a backward pass."""
        grad = self.parameter.grad
        return None if grad is None else self.as_out_in(grad)


@dataclass(frozen=True)
class Mlp:
    """One MLP: its matrices, and the module that holds them.

    `gate` is None if the MLP is not gated. `name` is the path of `module`. If an MLP has no module of its own (BERT,
    OPT), `module` is its layer, which has other children too.
    """

    name: str
    module: nn.Module
    up: Target
    down: Target
    gate: Target | None = None

    @property
    def layer(self) -> int | None:
        """Index of its layer, read from its name, or None."""
        return self.up.layer

    @property
    def targets(self) -> tuple[Target, ...]:
        """Its matrices: gate (if any), up, down."""
        return (self.up, self.down) if self.gate is None else (self.gate, self.up, self.down)
