"""Memory of the weights of a model, measured on its tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor, nn

from blast.layers.block_linear import BlockLinear
from blast.layers.sparse_mlp import SparseMlp
from blast.model.discovery import find_mlps
from blast.model.experts import expert_parameters


class ModelBytes(NamedTuple):
    """Memory of a model in bytes.

    Attributes:
        weights: All parameters and buffers, and the index, fp8 and dense tensors of fused MLPs.
        mlp: The part of `weights` in MLP matrices and in other block-sparse matrices: values and index, no bias.
    """

    weights: int
    mlp: int


def model_bytes(model: nn.Module) -> ModelBytes:
    """Memory of a model. Tied weights and shared indices count once.

    Example:
        >>> dense = blast.model_bytes(model).mlp
        >>> blast.model_bytes(blast.to_sparse(model, masks)).mlp < dense
        True
    """
    matrices = [target.module for mlp in find_mlps(model) for target in mlp.targets]
    mlp: list[Tensor] = [weight for matrix in matrices if (weight := matrix._parameters.get("weight")) is not None]
    mlp += expert_parameters(model)
    extra: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, BlockLinear):
            # Blocks in fp8 are no parameter: their MLP has them.
            values = module._parameters.get("values")
            mlp += [*([] if values is None else [values]), *module.index.buffers()]
        elif isinstance(module, SparseMlp):
            extra += module.extra_tensors
    return ModelBytes(_bytes([*model.parameters(), *model.buffers(), *extra]), _bytes([*mlp, *extra]))


def _bytes(tensors: Iterable[Tensor]) -> int:
    storages = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        # Storages without memory (empty, or on the meta device) all have the address 0.
        storages[storage.data_ptr() or id(tensor)] = storage.nbytes()
    return sum(storages.values())
