"""A matrix of a model, its MLP and its layer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple, cast

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


class ExpertSlice(NamedTuple):
    """Where the matrix of one expert is stored: a slice of a three-dimensional parameter.

    Attributes:
        parameter: Name of the parameter in its module, for instance `gate_up_proj`.
        number: Number of the expert: the matrix is `parameter[number]`.
        transposed: Whether the slice is stored as `[in, out]` (GPT-OSS, Llama 4).
    """

    parameter: str
    number: int
    transposed: bool


@dataclass(frozen=True)
class Target:
    """One matrix of a model, found to be pruned: the weight of a linear layer, or that of one expert.

    Attributes:
        name: Its module's name as in `model.named_modules()`. For an expert it is the name of the parameter and the
            number of the expert (`model.layers.0.mlp.experts.gate_up_proj.3`).
        module: The linear layer itself, or the module with the parameter of all experts.
            `blast.model.eligibility.obstacle` says whether a linear layer can be pruned.
        role: `gate`, `up`, `down` (of a gated MLP), `fc1`, `fc2` (of a plain one), `attention` or `other`. A matrix
            that holds gate and up together has the role `up`.
        mlp: Name of its MLP (of the module of the experts), or None.
        expert: The slice of an expert; None for a linear layer.
    """

    name: str
    module: nn.Module
    role: str
    mlp: str | None
    expert: ExpertSlice | None = None

    @property
    def transposed(self) -> bool:
        """Whether the matrix is stored as `[in, out]` (Conv1D, some experts)."""
        return is_conv1d(self.module) if self.expert is None else self.expert.transposed

    @property
    def module_name(self) -> str:
        """Name of `module` in `model.named_modules()`."""
        return self.name if self.expert is None else ".".join(self.name.split(".")[:-2])

    @property
    def parameter_name(self) -> str:
        """Name of `parameter` in `model.named_parameters()`."""
        leaf = "weight" if self.expert is None else self.expert.parameter
        return f"{self.module_name}.{leaf}" if self.module_name else leaf

    @property
    def layer(self) -> int | None:
        """Index of its layer, read from its name, or None."""
        return layer_of(self._name_without_expert)[1]

    @property
    def layer_path(self) -> str | None:
        """Name of its layer, ending with the index (`model.layers.3`), or None."""
        return layer_of(self._name_without_expert)[0]

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter that holds the matrix, as the module stores it; with all experts if it is 3-D."""
        return cast(nn.Parameter, getattr(self.module, "weight" if self.expert is None else self.expert.parameter))

    @property
    def key(self) -> tuple[int, int | None]:
        """Identity of the matrix: two targets with one key are one matrix under two names."""
        return id(self.parameter), None if self.expert is None else self.expert.number

    @property
    def shape(self) -> tuple[int, int]:
        """`(out, in)`."""
        if self.expert is None:
            return shape_of(self.module)
        *_, out, into = self.parameter.shape
        return (into, out) if self.transposed else (out, into)

    def stored(self, tensor: Tensor) -> Tensor:
        """The matrix, in the layout of its module, as a view of a tensor of the parameter's shape (e.g. a moment)."""
        return tensor if self.expert is None else tensor[self.expert.number]

    def as_out_in(self, tensor: Tensor) -> Tensor:
        """View `[out, in]` of the matrix in a tensor of the parameter's shape (a gradient, a moment)."""
        return self.stored(tensor).t() if self.transposed else self.stored(tensor)

    @property
    def weight(self) -> Tensor:
        """A detached view `[out, in]` of the weight. Writing to it changes the model."""
        return self.as_out_in(self.parameter.detach())

    @property
    def gradient(self) -> Tensor | None:
        """The gradient as a view `[out, in]`, or None before a backward pass."""
        grad = self.parameter.grad
        return None if grad is None else self.as_out_in(grad)

    @property
    def _name_without_expert(self) -> str:
        return self.name if self.expert is None else self.name.rpartition(".")[0]


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
