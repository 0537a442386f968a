"""What a model says is its state, compared with what a checkpoint stores: the rest is refused by name."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from blast.errors import BlastError
from blast.layers.fp8_linear import Fp8BlockLinear

# Classes of tensors that are nothing but their values. Others keep more beside them, or compute differently.
PLAIN = (Tensor, nn.Parameter, nn.Buffer)


def refuse_unstored_state(model: nn.Module, stored: Mapping[str, Tensor]) -> None:
    """Compares `state_dict()` of a model with the tensors that a checkpoint stores.

    Args:
        model: The model.
        stored: The tensors by their names in the checkpoint, each tied tensor under all its names.

    Raises:
        BlastError: if a module writes something else into its state: a quantised tensor, extra state, or anything else
            that a hook or the module's own method adds or changes. The message names the module.
    """
    for key, value in model.state_dict(keep_vars=True).items():
        # The index of a block-sparse matrix is a module of its own, without a name in the checkpoint.
        name = key if key in stored else key.replace(".index.", ".")
        tensor = stored.get(name)
        if isinstance(value, Tensor) and tensor is not None and _same_memory(value, tensor):
            continue
        path = _owner(model, key)
        if isinstance(model.get_submodule(path), Fp8BlockLinear):
            raise BlastError(f"the weights of '{path}' are in fp8; call blast.unfuse(model) before saving.")
        kind = type(model.get_submodule(path)).__name__
        what = "extra state" if key.endswith("_extra_state") else f"'{key}'"
        holds = "a changed tensor" if isinstance(value, Tensor) and tensor is not None else f"a {type(value).__name__}"
        raise BlastError(
            f"'{path}' ({kind}) writes {what} ({holds}) into its state by a method or hook of its own, which a "
            "checkpoint cannot store; replace that module by a plain one before saving."
        )


def plain_values(name: str, tensor: Tensor) -> Tensor:
    """The values of a tensor on the CPU, contiguous, in memory of their own or in a whole storage.

    Raises:
        BlastError: if the tensor is on the meta device, of a subclass, layout or dtype that a checkpoint cannot store.
    """
    if tensor.is_meta:
        raise BlastError(f"'{name}' is on the meta device and has no values to save; load the model first.")
    kind = type(tensor)
    if isinstance(tensor, nn.UninitializedParameter | nn.UninitializedBuffer):
        raise BlastError(f"'{name}' has no shape yet; call the model once before saving.")
    if kind not in PLAIN:
        raise BlastError(
            f"'{name}' is a {kind.__name__}, whose class a checkpoint cannot store; "
            "replace it by a plain tensor before saving, for instance by dequantising it."
        )
    if tensor.layout is not torch.strided or tensor.is_quantized or not _storable(tensor.dtype):
        form = str(tensor.dtype if tensor.layout is torch.strided else tensor.layout).removeprefix("torch.")
        raise BlastError(
            f"'{name}' is a tensor of the form {form}, which safetensors cannot store; convert it before saving."
        )
    # The writer refuses a view of a larger tensor, so it is copied.
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return plain if whole else plain.clone()


@cache
def _storable(dtype: torch.dtype) -> bool:
    """Whether a dtype comes back from safetensors as itself."""
    from safetensors.torch import load, save

    try:
        with warnings.catch_warnings(action="ignore"):  # about experimental dtypes
            return load(save({"x": torch.empty(1, dtype=dtype).zero_()}))["x"].dtype == dtype
    except Exception:  # each version refuses unknown types in its own way
        return False


def _same_memory(first: Tensor, second: Tensor) -> bool:
    if first is second:
        return True
    if first.dtype != second.dtype or first.shape != second.shape or type(first) not in PLAIN:
        return False
    return first.layout is torch.strided and first.data_ptr() == second.data_ptr() and first.stride() == second.stride()


def _owner(model: nn.Module, key: str) -> str:
    """Path of the innermost module that a name in the state belongs to."""
    modules: dict[str, Any] = dict(model.named_modules(remove_duplicate=False))
    path = key.rpartition(".")[0]
    while path and path not in modules:
        path = path.rpartition(".")[0]
    return path
