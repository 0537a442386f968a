"""Puts the tensors of a checkpoint into a dense model, after it checked that all of them fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from blast.block_sparse.blocks import BlockShape
from blast.block_sparse.csr import BlockCSR, BlockIndex
from blast.checkpoint.allocation import Wanted, allocate
from blast.checkpoint.tensors import dense_shapes, walk
from blast.checkpoint.weights_file import Place, WeightsFile
from blast.errors import BlastError
from blast.layers.block_linear import IndexBuffers
from blast.model.eligibility import is_linear_like, refuse_ineligible
from blast.model.experts import find_experts
from blast.model.module_replacement import replace_modules
from blast.model.sparse_modules import SparseMatrix, check_all_experts, sparse_modules
from blast.model.target import Target
from blast.tensor_parallel.parts import Part

Device = torch.device | str | None
PARTS = ("values", "row_offsets", "col_indices")


class StoredTensors:
    """The tensors of a checkpoint. Each is read once, so that tied tensors are tied again.

    Args:
        folder: The folder of the checkpoint.
        manifest: As `read_manifest` gives it.
        dtype_of: The dtype that a floating-point tensor of a name is cast to; None keeps its own.

    Attributes:
        parts: What is kept of a tensor, by name; others are kept whole. Set it before anything is read.

    Raises:
        BlastError: if the file of the weights was altered or is no safetensors file, or the aliases do not fit it.
    """

    parts: Mapping[str, Part]

    def __init__(
        self,
        folder: Path,
        manifest: Mapping[str, Any],
        dtype_of: Callable[[str], torch.dtype | None] = lambda _: None,
    ) -> None:
        path = folder / manifest["weights"]["file"]
        self.file = WeightsFile(path, manifest["weights"]["digest"])
        self._aliases, self._dtype_of, self.parts = manifest["aliases"], dtype_of, {}
        # By the stored name and the number of the part among the different ones of that tensor.
        self._read: dict[tuple[str, int], Tensor] = {}
        self._parameters: dict[tuple[str, int], nn.Parameter] = {}
        self._kept: dict[str, list[Part | None]] = {}
        stored = set(self.file.entries)
        for name, target in self._aliases.items():
            if name in stored or target not in stored:
                self.file.check_unaltered()
                raise BlastError(f"{path} does not hold '{name}' as the manifest says; save the model again.")
        self.names = {*stored, *self._aliases}

    def shape(self, name: str) -> list[int]:
        """The shape of what is kept of a tensor."""
        shape = self.file.entries[self._stored(name)].shape
        return self.parts[name].shape_of(shape) if name in self.parts else shape

    def index(self, name: str, facts: Mapping[str, Any]) -> BlockIndex:
        """The whole index of a block-sparse matrix, read before anything else and not compared with the digest.

        Args:
            name: The name of the matrix.
            facts: Its entry in the manifest.

        Raises:
            BlastError: if it is damaged.
        """
        try:
            offsets, columns = (self.file.read_unchecked(self._stored(f"{name}.{part}")) for part in PARTS[1:])
            return BlockIndex(offsets, columns, tuple(facts["shape"]), BlockShape(*facts["block"]))
        except KeyError:
            raise BlastError(f"{self.file.path} holds no index of '{name}'; save the model again.") from None
        except BlastError as error:
            raise BlastError(f"'{name}' of the checkpoint is damaged: {error}") from None

    def read(self, places: Mapping[str, torch.device | str]) -> None:
        """Reads all tensors into memory that is made for them; nothing else is held beside it.

        Args:
            places: The device of each tensor; the first of several names of one tensor decides.

        Raises:
            BlastError: if a device has too little memory, or the file was altered.
        """
        wanted: dict[tuple[str, int], Wanted] = {}
        for name, place in places.items():
            key = self._key(name)
            if key not in wanted:
                entry = self.file.entries[key[0]]
                cast_to = self._dtype_of(key[0]) if entry.dtype.is_floating_point else None
                wanted[key] = Wanted(self.shape(name), cast_to or entry.dtype, torch.device(place))
        read = allocate(wanted, self.file.path.parent)
        goes_to: dict[str, list[Place]] = {}
        for (stored, number), tensor in read.items():
            goes_to.setdefault(stored, []).append(Place(tensor, self._kept[stored][number]))
        self.file.read_into(goes_to)
        self._read = read

    def get(self, name: str) -> Tensor:
        """A tensor that was read."""
        return self._read[self._key(name)]

    def parameter(self, name: str, gradient: bool) -> nn.Parameter:
        """A tensor that was read as a parameter, in the memory of the tensor."""
        key = self._key(name)
        if key not in self._parameters:
            tensor = self._read[key]
            if gradient and not (tensor.is_floating_point() or tensor.is_complex()):
                raise BlastError(f"'{name}' is {tensor.dtype} in the checkpoint and can have no gradient in the model.")
            self._parameters[key] = nn.Parameter(tensor, requires_grad=gradient)
        return self._parameters[key]

    def _key(self, name: str) -> tuple[str, int]:
        """Equal for names of one tensor of which the same is kept: they are tied."""
        stored, part = self._stored(name), self.parts.get(name)
        known = self._kept.setdefault(stored, [])
        for number, other in enumerate(known):
            if other is part or (part is not None and part.equals(other)):
                return stored, number
        known.append(part)
        return stored, len(known) - 1

    def _stored(self, name: str) -> str:
        return self._aliases.get(name, name)


def usable_device(device: torch.device | str | int | None) -> torch.device | None:
    """A device that this machine has.

    Raises:
        BlastError: if torch does not know it, or this machine has no such GPU.
    """
    if device is None:
        return None
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise BlastError(f"the device is {device!r}, which torch does not know; give for instance 'cpu'.") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise BlastError(
            f"the device is '{found}', but torch finds {torch.cuda.device_count()} CUDA GPUs here; "
            "give a device that this machine has, for instance 'cpu'."
        )
    return found


def fill(model: nn.Module, manifest: Mapping[str, Any], tensors: StoredTensors, device: Device) -> None:
    """Makes a dense model the stored one, in place. No dense copy of a block-sparse matrix is made.

    The memory in use grows by the weights alone, on the device where they go: each tensor is read straight into its
    place, and the host holds one small part of the file where that is a GPU.

    Args:
        model: A dense model of the stored class and sizes; its parameters may be on the meta device.
        manifest: As `read_manifest` gives it.
        tensors: The stored tensors.
        device: Where to; None leaves each tensor where the model has its own, and those on the meta device on the CPU.

    Raises:
        BlastError: if something does not fit. Then the model is not changed.
    """
    targets = _targets(model, manifest["matrices"])
    sparse = {target.parameter_name for target in targets.values()}
    try:
        _check_fit(model, manifest, tensors, targets)
    except BlastError:
        tensors.file.check_unaltered()  # the better reason
        raise
    places = {
        f"{name}.{part}": _place(targets[name].parameter, device) for name in manifest["matrices"] for part in PARTS
    }
    dense = {name: entry for name, entry in walk(model) if name not in sparse}
    tensors.read(places | {name: _place(entry.tensor, device) for name, entry in dense.items()})
    replacements = sparse_modules(_block_sparse(targets, manifest["matrices"], tensors))
    new: dict[str, Tensor] = {}
    for name, (module, attribute, old) in dense.items():
        is_parameter = attribute in module._parameters
        new[name] = tensors.parameter(name, old.requires_grad) if is_parameter else tensors.get(name)
    # Nothing fails from here on.
    replace_modules(model, replacements)
    for name, (module, attribute, _) in list(walk(model)):
        if name in new:
            own = module._parameters if attribute in module._parameters else module._buffers
            cast(dict[str, Tensor], own)[attribute] = new[name]
    if device is not None:
        model.to(device)  # buffers that are not in the checkpoint


def _targets(model: nn.Module, matrices: Mapping[str, Any]) -> dict[str, Target]:
    """The dense matrices that the model has under the names of the block-sparse ones."""
    modules = dict(model.named_modules(remove_duplicate=False))
    found = {name: Target(name, modules[name], "other", None) for name in matrices if name in modules}
    linears = {name: target for name, target in found.items() if is_linear_like(target.module)}
    return linears | {
        target.name: target for each in find_experts(model) for target in each.targets if target.name in matrices
    }


def _check_fit(
    model: nn.Module, manifest: Mapping[str, Any], tensors: StoredTensors, targets: Mapping[str, Target]
) -> None:
    shapes = dense_shapes(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    whose = f"the checkpoint (a {manifest['class']} of {manifest['library']})"
    for name, facts in manifest["matrices"].items():
        target = targets.get(name)
        if target is not None and target.expert is None:
            refuse_ineligible(modules, [name], "pass a freshly built dense model", on_meta=True)
        if target is None or ([*target.shape], target.transposed) != (facts["shape"], facts["transposed"]):
            raise BlastError(
                f"{whose} has a block-sparse '{name}' of {facts['shape'][0]} x {facts['shape'][1]}, where the model "
                "has no dense linear layer of that shape; pass a freshly built model of the same class and sizes."
            )
        shapes.pop(target.parameter_name, None)
        rows = facts["shape"][0] // facts["block"][0]
        parts = ([facts["live"], *facts["block"]], [rows + 1], [facts["live"]])
        shapes |= {f"{name}.{part}": shape for part, shape in zip(PARTS, parts, strict=True)}
    check_all_experts(targets.values(), f"the matrices of {whose}")
    for name in sorted(shapes.keys() ^ tensors.names):
        where = "the model" if name in shapes else "the checkpoint"
        raise BlastError(
            f"'{name}' is only in {where}: it does not fit {whose}; pass a freshly built model of the same class."
        )
    for name, shape in shapes.items():
        if tensors.shape(name) != shape:
            owner, _, part = name.rpartition(".")
            where = "its manifest" if part in PARTS and owner in manifest["matrices"] else "the model"
            raise BlastError(
                f"'{name}' is {tensors.shape(name)} in {whose} and {shape} in {where}; "
                "pass a model built with the same sizes."
            )
    sparse = {target.parameter_name for target in targets.values()}
    for name, entry in walk(model, everything=True):
        if entry.tensor.is_meta and name not in tensors.names and name not in sparse:
            raise BlastError(f"'{name}' is not in {whose} and has no memory; build the model on a real device.")


def _block_sparse(
    targets: Mapping[str, Target], matrices: Mapping[str, Any], tensors: StoredTensors
) -> list[SparseMatrix]:
    """The stored block-sparse matrices."""
    indices: dict[tuple[object, ...], IndexBuffers] = {}
    made: list[SparseMatrix] = []
    for name, facts in matrices.items():
        weight = targets[name].parameter
        try:
            offsets, columns = (tensors.get(f"{name}.{part}") for part in PARTS[1:])
            key = (id(offsets), id(columns), *facts["shape"], *facts["block"])
            if key not in indices:
                block = BlockShape(*facts["block"])
                indices[key] = IndexBuffers(BlockIndex(offsets, columns, tuple(facts["shape"]), block))
            values = tensors.parameter(f"{name}.values", weight.requires_grad)
            made.append(SparseMatrix(targets[name], BlockCSR(indices[key].index, values), indices[key]))
        except BlastError as error:
            raise BlastError(f"'{name}' of the checkpoint is damaged: {error}") from None
    return made


def _place(old: Tensor, device: Device) -> torch.device | str:
    return device or ("cpu" if old.is_meta else old.device)
