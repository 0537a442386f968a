"""The training path of a sparse MLP: `torch.ops.blast.block_sparse_mlp_training` and its index lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar, cast

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

Result = TypeVar("Result")


class MlpLists:
    """The index lists that the training kernels read: int32 tensors, computed from the masks of an MLP, never saved.

    They are computed at the first use, and again after the index of a layer was replaced, moved or loaded.
    """

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self._made_of: list[Tensor] = []
        self._versions: list[int] = []

    def of(self, layers: list[BlockLinear]) -> list[Tensor]:
        """The lists of an MLP, computed if they are out of date.

        Args:
            layers: Gate (if any), up, down.
        """
        # A compiled graph cannot check them: code that replaces an index has to call `make`.
        if not torch.compiler.is_compiling() or not self.tensors:
            self.make(layers)
        return self.tensors

    @torch.compiler.disable
    def make(self, layers: list[BlockLinear]) -> None:
        """Computes the lists if they are out of date."""
        indices = [layer.index for layer in layers]
        made_of, versions = _state(indices)
        # The tensors are compared, not their ids, because Python reuses the id of a freed tensor.
        same = len(made_of) == len(self._made_of) and all(a is b for a, b in zip(made_of, self._made_of, strict=True))
        if same and versions == self._versions:
            return
        *gate_up, down = ((index.row_offsets, index.col_indices) for index in indices)
        with torch.inference_mode(False), torch.no_grad():
            self.tensors = cast("list[Tensor]", list(index_lists_on_device(gate_up, down, *_settings(layers))))
        self._made_of, self._versions = made_of, versions

    def set(self, tensors: list[Tensor], indices: Sequence[IndexBuffers]) -> None:
        """Sets lists that `list_arrays` computed.

        Args:
            tensors: The lists, on the device of the layers.
            indices: The indices they were computed from: gate (if any), up, down.
        """
        self.tensors = tensors
        self._made_of, self._versions = _state(indices)


def list_arrays(mlps: Sequence[tuple[list[BlockLinear], Sequence[CpuIndex]]]) -> list[list[np.ndarray]]:
    """Computes the lists of MLPs for new masks, on the CPU. Gate and up projections keep sharing their mask.

    Args:
        mlps: For each MLP its layers (gate, if any, up, down) and their new indices.

    Returns:
        For each MLP its lists, int32.
    """
    return [cast("list[np.ndarray]", list(lists)) for lists in _batched(mlps, index_arrays, _settings)]


def _batched(
    mlps: Sequence[tuple[list[BlockLinear], Sequence[CpuIndex]]],
    make: Callable[..., Sequence[Result]],
    settings: Callable[[list[BlockLinear]], tuple[Any, ...]],
) -> list[Result]:
    """Calls `make` once for all MLPs with equal shapes.

    Args:
        mlps: As for `list_arrays`.
        make: Takes the indices of several MLPs, and their settings.
        settings: Gives the settings of an MLP from its layers.

    Returns:
        The result of `make` for each MLP.
    """
    groups: dict[object, list[int]] = {}
    for place, (layers, _) in enumerate(mlps):
        shapes = tuple((layer.in_features, layer.out_features, layer.block) for layer in layers)
        groups.setdefault((shapes, _gate(layers)), []).append(place)
    made: dict[int, Result] = {}
    for places in groups.values():
        indices = [mlps[place][1] for place in places]
        each = make([(gate_up, down) for *gate_up, down in indices], *settings(mlps[places[0]][0]))
        made |= zip(places, each, strict=True)
    return [made[place] for place in range(len(mlps))]


def _settings(layers: list[BlockLinear]) -> tuple[int, bool, Callable[[int, int], tuple[int, int]]]:
    """The settings that the lists depend on, besides the masks."""
    first, down = layers[0], layers[-1]
    columns = first.in_features // first.block.cols
    return columns, _gate(layers) == "tied", partial(group_members, down.block.cols)


def _state(indices: Sequence[IndexBuffers]) -> tuple[list[Tensor], list[int]]:
    """The tensors that lists are computed from, and the version counter of each."""
    tensors = [tensor for index in indices for tensor in (index.row_offsets, index.col_indices)]
    return tensors, [-1 if tensor.is_inference() else tensor._version for tensor in tensors]


def can_train(layers: list[BlockLinear]) -> bool:
    """Whether the training operator supports an MLP with these layers (gate, if any, up, down).

    The blocks of the up projection must have as many rows as those of the down projection have columns.
    """
    *gate_up, down = layers
    return all(layer.block == gate_up[0].block for layer in gate_up) and gate_up[0].block.rows == down.block.cols


def run_training(x: Tensor, layers: list[BlockLinear], lists: MlpLists, activation: str) -> Tensor:
    """Runs an MLP with the training operator; under autocast in the autocast dtype.

    Args:
        x: `[..., in]`.
        layers: Gate (if any), up, down.
        lists: Index lists of these layers.
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
    """`run_training` outside compiled graphs, with the same arguments and one more.

    Args:
        on_backward: Called in the backward pass with the input and the gradient of the output.
    """
    *gate, up, down = layers
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    values = [layer.values for layer in (*gate, up)]
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
    arrays = _batched(indices, complete_arrays, lambda layers: (_gate(layers) == "tied",))
    devices = [layers[-1].values.device for layers, _, _ in mlps]
    lists = batched_copy_by_device(list(zip(devices, arrays, strict=True)))
    for whole, (layers, activation, passes) in zip(lists, mlps, strict=True):
        for x, grad in passes:
            *gate_up, down = (layer.values for layer in layers)
            gradients = dense_gradients(grad, x, gate_up, down, layers[-2].bias, whole, activation, _gate(layers))
            for layer, gradient in zip(layers, gradients, strict=True):
                if layer.dense_gradient is not None:
                    layer.dense_gradient.add(gradient)


def _operands(x: Tensor, layers: list[BlockLinear]) -> tuple[Any, ...]:
    """Input, gate and up blocks, down blocks, both biases and the kind of gate; in the autocast dtype if set."""
    up, down = layers[-2:]
    values: list[Tensor] = [layer.values for layer in layers]
    biases: list[Tensor | None] = [up.bias, down.bias]
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, values = x.to(dtype), [tensor.to(dtype) for tensor in values]
        biases = [None if bias is None else bias.to(dtype) for bias in biases]
    return x, values[:-1], values[-1], *biases, _gate(layers)


def _gate(layers: list[BlockLinear]) -> str:
    """`none`, `tied` (gate and up share a mask) or `untied`."""
    *gate_up, _ = layers
    return "none" if len(gate_up) == 1 else "tied" if gate_up[0].index is gate_up[1].index else "untied"
