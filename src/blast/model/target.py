"""One matrix of a model that can be pruned, the MLP it belongs to, and the layer that its name puts it in."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor, nn

from blast.block_sparse.conv1d import is_conv1d


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a dense linear layer that can be replaced: `nn.Linear` or the Conv1D of GPT-2.

    The output projection inside `nn.MultiheadAttention` is not: that module reads its weight directly.
    """
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return False
    return isinstance(module, nn.Linear) or is_conv1d(module)


def layer_of(name: str) -> tuple[str | None, int | None]:
    """Path and index of the layer that a matrix belongs to, read from its name.

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
    """One matrix that can be pruned.

    Attributes:
        name: Its module's name as in `model.named_modules()`.
        module: The `nn.Linear` or Conv1D itself.
        role: `gate`, `up`, `down` (of a gated MLP), `fc1`, `fc2` (of a plain one), `attention` or `other`.
        mlp: Name of the MLP it belongs to, or None.
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
        """Name of its layer up to and with the index (`model.layers.3`), or None."""
        return layer_of(self.name)[0]

    @property
    def parameter(self) -> nn.Parameter:
        """The live parameter as the module stores it."""
        return self.module.weight

    @property
    def shape(self) -> tuple[int, int]:
        """`(out, in)`."""
        out, into = self.as_out_in(self.module.weight).shape
        return out, into

    def as_out_in(self, tensor: Tensor) -> Tensor:
        """View `[out, in]` of a tensor stored like the parameter (a gradient, a moment)."""
        return tensor.t() if self.transposed else tensor

    @property
    def weight(self) -> Tensor:
        """The live weight as a view `[out, in]`, outside autograd: writing to it changes the model."""
        return self.as_out_in(self.module.weight.detach())

    @property
    def gradient(self) -> Tensor | None:
        """The gradient as a view `[out, in]`, or None before a backward pass."""
        grad = self.module.weight.grad
        return None if grad is None else self.as_out_in(grad)


@dataclass(frozen=True)
class Mlp:
    """One MLP: its matrices, and the module that holds them.

    `gate` is None when the MLP is not gated. `name` is the path of `module`; for an MLP split over two modules (BERT)
    or written straight into its layer (OPT) that is the layer, so the module may hold other things too.
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
