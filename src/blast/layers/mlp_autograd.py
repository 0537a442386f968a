"""The training path of a sparse MLP: `torch.ops.blast.block_sparse_mlp_training` and its lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import blast_kernels.mlp_training.ops  # noqa: F401  (registers torch.ops.blast.*)
import numpy as np
import torch
from blast_kernels.common.batched_copy import batched_copy_by_device
from blast_kernels.mlp_training.autograd import dense_gradients, mlp_training_eager
from blast_kernels.mlp_training.heuristics import group_members
from blast_kernels.mlp_training.index_lists import complete_arrays, index_arrays, index_lists_on_device
from torch import Tensor

from blast.block_sparse.cpu_index import CpuIndex
from blast.layers.block_linear import BlockLinear, IndexBuffers


class MlpLists:
    """What the training kernels read of the masks of an MLP: int32 tensors that follow from them and are never saved.

    Made when they are first asked for, and anew when the index of a layer was replaced, moved or loaded.
    """

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self._made_of: list[Tensor] = []
        self._versions: list[int] = []

    def of(self, layers: list[BlockLinear]) -> list[Tensor]:
        """The lists of an MLP.

        Args:
            layers: Gate (if any), up, down.
        """
        # A compiled graph takes them as they are: whoever replaces an index makes the lists anew.
        if not torch.compiler.is_compiling() or not self.tensors:
            self.make(layers)
        return self.tensors

    @torch.compiler.disable
    def make(self, layers: list[BlockLinear]) -> None:
        """Makes the lists if they are not those of the present masks."""
        indices = [layer.index for layer in layers]
        made_of, versions = _state(indices)
        # The tensors themselves, not their ids: those of freed ones are given again.
        same = len(made_of) == len(self._made_of) and all(a is b for a, b in zip(made_of, self._made_of, strict=True))
        if same and versions == self._versions:
            return
        *front, down = ((index.row_offsets, index.col_indices) for index in indices)
        with torch.inference_mode(False), torch.no_grad():
            self.tensors = list(index_lists_on_device(front, down, *_settings(layers)))
        self._made_of, self._versions = made_of, versions

    def take(self, tensors: list[Tensor], indices: Sequence[IndexBuffers]) -> None:
        """Takes lists that were made elsewhere (`list_arrays`).

        Args:
            tensors: The lists, where the layers are.
            indices: What they were made of: of gate (if any), up, down.
        """
        self.tensors = tensors
        self._made_of, self._versions = _state(indices)


def list_arrays(mlps: Sequence[tuple[list[BlockLinear], Sequence[CpuIndex]]]) -> list[list[np.ndarray]]:
    """The lists of MLPs under masks that their layers will have; those that were tied stay so.

    Args:
        mlps: Of each the layers (gate, if any, up, down) and, on the host, their indices.
    """
    return [list(lists) for lists in _alike(mlps, index_arrays, _settings)]


def _alike(mlps: Sequence[tuple[list[BlockLinear], Sequence[CpuIndex]]], make: Callable, settings: Callable) -> list:
    """What `make` gives for each MLP; it is called for all those at once whose layers are alike.

    Args:
        mlps: As for `list_arrays`.
        make: Takes MLPs and what `settings` says of them.
        settings: Of the layers of an MLP.
    """
    groups: dict[tuple, list[int]] = {}
    for place, (layers, _) in enumerate(mlps):
        shapes = tuple((layer.in_features, layer.out_features, layer.block) for layer in layers)
        groups.setdefault((shapes, _gate(layers)), []).append(place)
    made: dict[int, object] = {}
    for places in groups.values():
        indices = [mlps[place][1] for place in places]
        each = make([(front, down) for *front, down in indices], *settings(mlps[places[0]][0]))
        made |= zip(places, each, strict=True)
    return [made[place] for place in range(len(mlps))]


def _settings(layers: list[BlockLinear]) -> tuple:
    """What the lists depend on besides the masks."""
    front, down = layers[0], layers[-1]
    columns = front.in_features // front.block.cols
    return columns, _gate(layers) == "tied", partial(group_members, down.block.cols)


def _state(indices: Sequence[IndexBuffers]) -> tuple[list[Tensor], list[int]]:
    """The tensors that lists were made of, and how often each was written to."""
    tensors = [tensor for index in indices for tensor in (index.row_offsets, index.col_indices)]
    return tensors, [-1 if tensor.is_inference() else tensor._version for tensor in tensors]


def can_train(layers: list[BlockLinear]) -> bool:
    """Whether the operator takes an MLP of these layers (gate, if any, up, down).

    Its hidden blocks have to be those that the down projection reads.
    """
    *front, down = layers
    return all(layer.block == front[0].block for layer in front) and front[0].block.rows == down.block.cols


def run_training(x: Tensor, layers: list[BlockLinear], lists: MlpLists, activation: str) -> Tensor:
    """The MLP through the training operator, under autocast in the autocast dtype.

    Args:
        x: `[..., in]`.
        layers: Gate (if any), up, down.
        lists: Of these layers.
        activation: Name of the activation.

    Returns:
        `[..., out]`.
    """
    *operands, gate = _operands(x, layers)
    y, _ = torch.ops.blast.block_sparse_mlp_training(*operands, lists.of(layers), activation, gate)
    return y


def all_accumulate(layers: list[BlockLinear]) -> bool:
    """Whether every layer accumulates its dense gradient."""
    return all(layer.dense_gradient is not None and layer.values.requires_grad for layer in layers)


def run_uncompiled(
    x: Tensor,
    layers: list[BlockLinear],
    lists: MlpLists,
    activation: str,
    on_backward: Callable[[Tensor, Tensor], object] | None = None,
) -> Tensor:
    """`run_training` outside of compiled graphs; arguments as there.

    Args:
        on_backward: Called in the backward pass with the input and the gradient of the output.
    """
    *front, up, down = layers
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    values = [layer.values for layer in (*front, up)]
    return mlp_training_eager(
        on_backward, dtype, x, values, down.values, up.bias, down.bias, lists.of(layers), activation, _gate(layers)
    )


def accumulate_dense_gradients(mlps: Sequence[tuple[list[BlockLinear], str, Sequence[tuple[Tensor, Tensor]]]]) -> None:
    """Computes the dense gradients of MLPs and adds them to the `dense_gradient` of each layer.

    Args:
        mlps: For each MLP its layers (gate, if any, up, down), its activation, and for each backward pass the saved
            activations: the input and the gradient of the output.
    """
    indices = [(layers, [layer.index.index.cpu_index for layer in layers]) for layers, _, _ in mlps]
    arrays = _alike(indices, complete_arrays, lambda layers: (_gate(layers) == "tied",))
    devices = [layers[-1].values.device for layers, _, _ in mlps]
    lists = batched_copy_by_device(list(zip(devices, arrays, strict=True)))
    for whole, (layers, activation, passes) in zip(lists, mlps, strict=True):
        for x, grad in passes:
            *front, down = (layer.values for layer in layers)
            gradients = dense_gradients(grad, x, front, down, layers[-2].bias, whole, activation, _gate(layers))
            for layer, gradient in zip(layers, gradients, strict=True):
                layer.dense_gradient.add(gradient)


def _operands(x: Tensor, layers: list[BlockLinear]) -> tuple:
    """Input, blocks of the front, of the down projection, and both biases, in the autocast dtype if there is one."""
    *front, down = layers
    values, biases = [layer.values for layer in layers], [front[-1].bias, down.bias]
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, values = x.to(dtype), [tensor.to(dtype) for tensor in values]
        biases = [None if bias is None else bias.to(dtype) for bias in biases]
    return x, values[:-1], values[-1], *biases, _gate(layers)


def _gate(layers: list[BlockLinear]) -> str:
    *front, _ = layers
    return "none" if len(front) == 1 else "tied" if front[0].index is front[1].index else "untied"
