"""The tensors of a model under the names that a checkpoint gives them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn

from blast.errors import BlastError
from blast.layers.block_linear import BlockLinear, IndexBuffers


class Entry(NamedTuple):
    """A tensor of a model and the module and attribute that hold it."""

    module: nn.Module
    attribute: str
    tensor: Tensor


def walk(model: nn.Module, everything: bool = False) -> Iterator[tuple[str, Entry]]:
    """The tensors of a model with the names a checkpoint gives them, tied ones under each of their names.

    Besides parameters these are the buffers that persist, and all floating-point ones: a rotary table is not in the
    state dict, yet cast with the model, and cannot be recomputed without loss.
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
    """The tensors to store by name, and for each further name of one of them the name it is stored under."""
    for path, module in model.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise BlastError(
                f"'{path}' ({type(module).__name__}) has extra state that is not a tensor, which a checkpoint cannot "
                "hold; replace that module before saving."
            )
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[object, str] = {}
    for name, entry in walk(model):
        tensor = entry.tensor
        if tensor.is_meta:
            raise BlastError(f"'{name}' is on the meta device and has no values to save; load the model first.")
        place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride())
        key = (place, tensor.dtype) if tensor.numel() else id(tensor)
        if first.setdefault(key, name) != name:
            aliases[name] = first[key]
        else:
            # A copy of its own memory where it is a part of a larger one, which the writer refuses.
            whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
            plain = tensor.detach().cpu().contiguous()
            tensors[name] = plain if whole else plain.clone()
    return tensors, aliases


def dense_shapes(model: nn.Module) -> dict[str, list[int]]:
    """Names and shapes of the tensors of a model, as if every matrix were dense."""
    shapes = {name: list(entry.tensor.shape) for name, entry in walk(model)}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, BlockLinear):
            prefix = f"{path}." if path else ""
            for name in ("values", "row_offsets", "col_indices"):
                del shapes[prefix + name]
            sides = [module.out_features, module.in_features]
            shapes[f"{prefix}weight"] = sides[::-1] if module.transposed else sides
    return shapes
