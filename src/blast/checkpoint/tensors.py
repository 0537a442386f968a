"""The tensors of a model with their names in a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor, nn

from blast.checkpoint.state import PLAIN, plain_values, refuse_unstored_state
from blast.errors import BlastError
from blast.layers.block_linear import BlockLinear, IndexBuffers
from blast.layers.sparse_experts import SparseExperts


class Entry(NamedTuple):
    """A tensor of a model, with its module and its attribute there."""

    module: nn.Module
    attribute: str
    tensor: Tensor


def walk(model: nn.Module, everything: bool = False) -> Iterator[tuple[str, Entry]]:
    """The tensors of a model with their names in a checkpoint; tied tensors under each of their names.

    These are the parameters, the persistent buffers and all floating-point buffers. For instance a rotary table is
    not in the state dict, but it is cast with the model and cannot be recomputed exactly.
    """
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        if isinstance(module, IndexBuffers):
            prefix = prefix.removesuffix("index.")
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield prefix + name, Entry(module, name, parameter)
        for name, buffer in module._buffers.items():
            persists = name not in module._non_persistent_buffers_set
            if buffer is not None and (everything or persists or buffer.is_floating_point()):
                yield prefix + name, Entry(module, name, buffer)


def unique_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors to store by name, and for each further name of a tensor the name it is stored under.

    Raises:
        BlastError: if the model is on the meta device, if part of its state cannot be stored, or if tensors share some
            of their memory but not all of it.
    """
    entries = {name: entry.tensor for name, entry in walk(model)}
    refuse_unstored_state(model, entries)
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[object, str] = {}
    stored: dict[str, Tensor] = {}
    for name, tensor in entries.items():
        key = _memory(tensor)
        if first.setdefault(key, name) != name:
            aliases[name] = first[key]
        else:
            tensors[name] = plain_values(name, tensor)
            stored[name] = tensor
    _refuse_partial_ties(stored)
    return tensors, aliases


def _memory(tensor: Tensor) -> object:
    """Equal for tensors that are the same values in the same memory."""
    if type(tensor) not in PLAIN or tensor.layout is not torch.strided or tensor.is_meta or not tensor.numel():
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _refuse_partial_ties(tensors: dict[str, Tensor]) -> None:
    """Refuses tensors that share elements without being the same: loading would make them independent."""
    by_storage: dict[object, list[tuple[int, int, str]]] = {}
    for name, tensor in tensors.items():
        if tensor.numel():
            start = int(tensor.storage_offset()) * tensor.element_size()
            span = 1 + sum(int((size - 1) * stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
            place = (tensor.device, tensor.untyped_storage().data_ptr())
            by_storage.setdefault(place, []).append((start, start + span * tensor.element_size(), name))
    for spans in by_storage.values():
        for (start, end, one), (other_start, other_end, other) in combinations(sorted(spans), 2):
            if other_start < end and _overlap(start, max(end, other_end), tensors[one], tensors[other]):
                raise BlastError(
                    f"'{one}' and '{other}' share a part of their memory, and a checkpoint can only tie whole "
                    "tensors; clone one of them before saving."
                )


def _overlap(start: int, end: int, first: Tensor, second: Tensor) -> bool:
    """Whether two tensors of one storage share a byte; both lie between `start` and `end`."""
    used = torch.zeros(end - start, dtype=torch.bool)  # columns of one matrix have spans that overlap, but no bytes
    views = []
    for tensor in (first, second):
        size = tensor.element_size()
        strides = [stride * size for stride in tensor.stride()]
        views.append(used.as_strided([*tensor.shape, size], [*strides, 1], tensor.storage_offset() * size - start))
    views[0].fill_(True)
    return bool(views[1].any())


def dense_shapes(model: nn.Module) -> dict[str, list[int]]:
    """Names and shapes of the tensors of a model in its dense state."""
    shapes = {name: list(entry.tensor.shape) for name, entry in walk(model)}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, BlockLinear):
            prefix = f"{path}." if path else ""
            for name in ("values", "row_offsets", "col_indices"):
                del shapes[prefix + name]
            sides = [module.out_features, module.in_features]
            shapes[f"{prefix}weight"] = sides[::-1] if module.transposed else sides
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, SparseExperts):
            for name, layers in module.stacks.items():
                stack = f"{path}.{name}" if path else name
                one_each = [shapes.pop(f"{stack}.{number}.weight") for number in range(len(layers))]
                shapes[stack] = [len(layers), *one_each[0]]
    return shapes
