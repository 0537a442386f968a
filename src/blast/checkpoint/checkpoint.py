"""Checkpoints: a folder with `model.safetensors` and `blast.json`, without pickle and without code.

`model.safetensors` uses the tensor names of the model. A block-sparse matrix `x` has `x.values`, `x.row_offsets` and
`x.col_indices` in place of `x.weight`. Tied weights and shared indices are stored once. `blast.json` has the class of
the model, the block-sparse matrices with their blocks, the names that share a tensor, and digests.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from blast.block_sparse.csr import BlockCSR, BlockIndex
from blast.block_sparse.sharding import refuse_sharded
from blast.checkpoint.builders import describe, skeleton
from blast.checkpoint.manifest import WEIGHTS, read_manifest, replaced_folder, write_manifest
from blast.checkpoint.tensors import dense_shapes, unique_tensors, walk
from blast.errors import BlastError
from blast.layers.block_linear import BlockLinear, IndexBuffers
from blast.model.convert import refuse_save_pretrained
from blast.model.eligibility import is_linear_like, refuse_ineligible
from blast.model.module_replacement import replace_modules, sparse_layers, unwrapped, weight_parameter


def save(model: nn.Module, folder: str | Path) -> str:
    """Writes a model, sparse or dense, to a folder. After an error the folder is unchanged.

    An existing checkpoint is replaced; other files in its folder are kept.

    Args:
        model: Any model. `load(folder)` can build those of transformers and torchvision's VisionTransformer; other
            models need `load(folder, model=...)`.
        folder: The folder of the checkpoint; created with its parents.

    Returns:
        Digest of the checkpoint, `"sha256:…"`.

    Raises:
        BlastError: if the folder contains something else, part of the model's state cannot be stored, or the model is
            sharded (`fully_shard`); then the message says how to get an unsharded one.

    Example:
        >>> blast.save(blast.to_sparse(model, masks), "my-sparse-model")
        'sha256:...'
    """
    from safetensors.torch import save_file

    model = unwrapped(model)
    refuse_sharded(model)
    tensors, aliases = unique_tensors(model)
    described = describe(model)
    if described["base"] is not None and dense_shapes(skeleton(described)) != dense_shapes(model):
        described["base"] = None  # it was changed after it was built
    content = {
        **described,
        "matrices": {name: _facts(layer) for name, layer in sparse_layers(model).items()},
        "aliases": aliases,
    }
    with replaced_folder(Path(folder).resolve()) as fresh:
        save_file(tensors, fresh / WEIGHTS, metadata={"format": "pt"})
        return write_manifest(fresh, content)


def load(folder: str | Path, model: nn.Module | None = None, device: torch.device | str | None = None) -> nn.Module:
    """Loads a model as it was saved, sparse or dense, in eval mode. Sparse matrices stay sparse while loading.

    Args:
        folder: A folder that `save` wrote.
        model: The dense model to load into, for classes that blast cannot build; changed in place.
        device: Device of the loaded tensors; by default that of `model`, else the CPU.

    Returns:
        The model; `blast.to_dense(model)` makes it dense.

    Raises:
        BlastError: if the checkpoint is missing, incomplete, altered or of another format version, or if `model` does
            not fit it. Then `model` is not changed.

    Example:
        >>> digest = blast.save(blast.to_sparse(model, masks), "my-sparse-model")
        >>> model = blast.load("my-sparse-model", device="cpu")
    """
    folder = Path(folder).resolve()
    manifest = read_manifest(folder)
    built = model is None
    target = skeleton(manifest) if model is None else model
    tensors = _Tensors(folder, manifest["aliases"])
    _check_fit(target, manifest, tensors)
    _make_sparse(target, manifest["matrices"], tensors, device)
    _fill(target, tensors, device)
    unfilled = [name for name, entry in walk(target, everything=True) if entry.tensor.is_meta]
    if unfilled:
        remedy = "this is a bug of blast" if built else "build the model on a real device"
        raise BlastError(f"'{unfilled[0]}' is not in {folder / WEIGHTS} and has no memory; {remedy}.")
    refuse_save_pretrained(target)
    return target.eval()


class _Tensors:
    """The tensors of a checkpoint. Each is read once, so that tied tensors are tied again."""

    def __init__(self, folder: Path, aliases: Mapping[str, str]) -> None:
        from safetensors import safe_open

        self._file = safe_open(folder / WEIGHTS, framework="pt")
        self._aliases = aliases
        self._read: dict[tuple[str, bool], Tensor] = {}
        self.names = {*self._file.keys(), *aliases}

    def shape(self, name: str) -> list[int]:
        return self._file.get_slice(self.stored(name)).get_shape()

    def stored(self, name: str) -> str:
        return self._aliases.get(name, name)

    def get(self, name: str, device: torch.device | str, parameter: bool = False, gradient: bool = True) -> Tensor:
        key = (self.stored(name), parameter)
        if key not in self._read:
            # Cloned, because on the CPU these tensors are views of the memory-mapped file.
            tensor = self._file.get_tensor(key[0]).clone().to(device)
            self._read[key] = nn.Parameter(tensor, requires_grad=gradient) if parameter else tensor
        return self._read[key]


def _facts(layer: BlockLinear) -> dict[str, Any]:
    rows, cols = layer.index.index.grid
    return {
        "shape": [layer.out_features, layer.in_features],
        "block": list(layer.block),
        "blocks": rows * cols,
        "live": layer.col_indices.numel(),
        "transposed": layer.transposed,
    }


def _check_fit(model: nn.Module, manifest: Mapping[str, Any], tensors: _Tensors) -> None:
    shapes = dense_shapes(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    whose = f"the checkpoint (a {manifest['class']} of {manifest['library']})"
    for name, facts in manifest["matrices"].items():
        expected = facts["shape"][::-1] if facts["transposed"] else facts["shape"]
        if is_linear_like(modules.get(name, nn.Identity())):
            refuse_ineligible(modules, [name], "pass a freshly built dense model", on_meta=True)
        if name not in modules or shapes.pop(f"{name}.weight", None) != expected:
            raise BlastError(
                f"{whose} has a block-sparse '{name}' of {facts['shape'][0]} x {facts['shape'][1]}, where the model "
                "has no dense linear layer of that shape; pass a freshly built model of the same class and sizes."
            )
        shapes |= {f"{name}.{part}": tensors.shape(f"{name}.{part}") for part in _PARTS}
    for name in sorted(shapes.keys() ^ tensors.names):
        where = "the model" if name in shapes else "the checkpoint"
        raise BlastError(
            f"'{name}' is only in {where}: it does not fit {whose}; pass a freshly built model of the same class."
        )
    for name, shape in shapes.items():
        if tensors.shape(name) != shape:
            raise BlastError(
                f"'{name}' is {tensors.shape(name)} in {whose} and {shape} in the model; "
                "pass a model built with the same sizes."
            )


_PARTS = ("values", "row_offsets", "col_indices")


def _make_sparse(
    model: nn.Module, matrices: Mapping[str, Any], tensors: _Tensors, device: torch.device | str | None
) -> None:
    indices: dict[object, IndexBuffers] = {}
    replacements: dict[int, BlockLinear] = {}
    for name, facts in matrices.items():
        module = model.get_submodule(name)
        weight = weight_parameter(module)
        place = _place(weight, device)
        offsets, columns = (tensors.get(f"{name}.{part}", place) for part in _PARTS[1:])
        key = (id(offsets), id(columns), *facts["shape"])
        if key not in indices:
            indices[key] = IndexBuffers(BlockIndex(offsets, columns, tuple(facts["shape"]), facts["block"]))
        values = tensors.get(f"{name}.values", place, parameter=True, gradient=weight.requires_grad)
        matrix = BlockCSR(indices[key].index, values)
        replacements[id(module)] = BlockLinear.replacing(module, matrix, indices[key])
    replace_modules(model, replacements)


def _fill(model: nn.Module, tensors: _Tensors, device: torch.device | str | None) -> None:
    for name, (module, attribute, old) in list(walk(model)):
        if isinstance(module, IndexBuffers):
            continue
        if attribute in module._parameters:
            new = tensors.get(name, _place(old, device), parameter=True, gradient=old.requires_grad)
            module._parameters[attribute] = cast(nn.Parameter, new)
        else:
            module._buffers[attribute] = tensors.get(name, _place(old, device))
    if device is not None:
        model.to(device)  # buffers that are not in the checkpoint


def _place(old: Tensor, device: torch.device | str | None) -> torch.device | str:
    return device or ("cpu" if old.is_meta else old.device)
