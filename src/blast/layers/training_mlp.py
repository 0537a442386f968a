"""A whole MLP of a model in training, in its sparse state."""

from __future__ import annotations

import torch
from torch import Tensor

from blast.layers.block_linear import BlockLinear
from blast.layers.mlp_autograd import can_train, hand_over, run_uncompiled, watches_all
from blast.layers.sparse_mlp import SparseMlp


class TrainedMlp(SparseMlp):
    """A `SparseMlp` of a model in training: it holds no packed copy, and runs by the training operator always.

    For mask updates its backward pass tells its input and the gradient of its output, which the dense gradients of its
    layers follow from: at once to those who watch the layers, or by way of `told`.

    Attributes:
        told: What the backward passes since told, if it shall be kept, else None. Of a captured step it lies where each
            replay puts it.
    """

    told: list[tuple[Tensor, Tensor]] | None = None

    def pack(self) -> None:
        """Makes the lists of the present masks; to be called when an index was replaced."""
        self._packed = self._dense = None
        layers = self.layers
        if can_train(layers) and not layers[0].values.is_meta:
            self.lists.make(layers)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in]` to `[..., out]`, as the MLP it replaces."""
        return self.original.forward(x) if self.training and self._dropout else self._train(x)

    def _run_training(self, x: Tensor, layers: list[BlockLinear]) -> Tensor:
        if torch.compiler.is_compiling():
            return super()._run_training(x, layers)
        tell = None if self.told is None else self._keep
        if any(layer.watch is not None for layer in layers):
            # Layer by layer if some are not looked at.
            if not watches_all(layers):
                return self.original.forward(x)
            tell = self._hand_over
        return run_uncompiled(x, layers, self.lists, self.activation, tell)

    def _hand_over(self, x: Tensor, grad: Tensor) -> None:
        hand_over([(self.layers, self.activation, [(x, grad)])])

    def _keep(self, x: Tensor, grad: Tensor) -> None:
        # Without the graph of autograd, which they would keep.
        self.told.append((x.detach(), grad.detach()))
