"""A whole sparse MLP during training."""

from __future__ import annotations

import torch
from torch import Tensor

from blast.layers.block_linear import BlockLinear
from blast.layers.mlp_autograd import accumulate_dense_gradients, all_accumulate, can_train, run_uncompiled
from blast.layers.sparse_mlp import SparseMlp


class TrainingMlp(SparseMlp):
    """A `SparseMlp` for training: it always runs the training operator.

    Mask updates need the dense gradients of its layers. They follow from the input and the gradient of the output. The
    backward pass either computes them at once, or saves both tensors in `saved_activations`.

    Attributes:
        saved_activations: For each backward pass the input and the gradient of the output; None saves nothing. In a
            captured step each replay overwrites these tensors in place.
    """

    saved_activations: list[tuple[Tensor, Tensor]] | None = None

    def prepare(self) -> None:
        """Computes the index lists of the current masks. Call it after an index was replaced."""
        self._row_lists = None
        layers = self.layers
        if can_train(layers) and not layers[0].values.is_meta:
            self.lists.make(layers)

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        """`[..., in]` to `[..., out]`, as the MLP it replaces; with further arguments layer by layer."""
        x = self._only_input(inputs, named)
        if x is None:
            return self.original.forward(*inputs, **named)
        return self.original.forward(x) if self._runs_layers() else self._train(x)

    def _run_training(self, x: Tensor, layers: list[BlockLinear]) -> Tensor:
        if torch.compiler.is_compiling():
            return super()._run_training(x, layers)
        on_backward = None if self.saved_activations is None else self._save
        if any(layer.dense_gradient is not None for layer in layers):
            # Layer by layer if only some of them accumulate.
            if not all_accumulate(layers):
                return self.original.forward(x)
            on_backward = self._accumulate
        return run_uncompiled(x, layers, self.lists, self.activation_name, on_backward)

    def _accumulate(self, x: Tensor, grad: Tensor) -> None:
        accumulate_dense_gradients([(self.layers, self.activation_name, [(x, grad)])])

    def _save(self, x: Tensor, grad: Tensor) -> None:
        # Detached, so that the autograd graph is freed.
        if self.saved_activations is not None:
            self.saved_activations.append((x.detach(), grad.detach()))
