"""The tensors of a model with their names in a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn

from blast.errors import BlastError
from blast.layers.block_linear import BlockLinear, IndexBuffers


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
        BlastError: if the model is on the meta device, or has extra state that is not a tensor.
    """
    for path, module in model.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise BlastError(
                f"'{path}' ({type(module).__name__}) has extra state that is not a tensor, which a checkpoint cannot "
                "store; replace that module before saving."
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
            # The writer refuses a view of a larger tensor, so it is copied.
            whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
            plain = tensor.detach().cpu().contiguous()
            tensors[name] = plain if whole else plain.clone()
    return tensors, aliases


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
    return shapes
