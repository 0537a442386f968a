"""A tensor that is computed at each access, so that a write to it would be lost: writes are refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from blast.errors import BlastError


class ComputedWeight(Tensor):
    """The dense weight of a block-sparse layer, to read. Results of operations on it are plain tensors.

    Raises:
        BlastError: by an operation that changes it in place (`mul_`, `copy_`, `w[...] = x`, `torch.nn.init`), also over
            `.data`, `.detach()` or a view.
    """

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        writes = (name.endswith("_") and not name.endswith("__")) or name in ("__setitem__", "__set__")
        target = args[0] if args else kwargs.get("tensor", kwargs.get("input"))
        if (writes and isinstance(target, ComputedWeight)) or isinstance(kwargs.get("out"), ComputedWeight):
            raise BlastError(
                "the weight of a block-sparse layer is computed from its live blocks, so a write to it would be lost; "
                "write to `values`, call blast.to_dense(model) first, or change a copy made with clone()."
            )
        with torch._C.DisableTorchFunctionSubclass():
            if name in ("__deepcopy__", "__reduce_ex__") and isinstance(target, ComputedWeight):
                # A copy is a plain tensor, which may be changed.
                args = (target.as_subclass(Tensor), *args[1:])
            result = func(*args, **kwargs)
        if isinstance(result, Tensor) and isinstance(target, ComputedWeight) and _shares(result, target):
            return result.as_subclass(cls)
        return result.as_subclass(Tensor) if isinstance(result, ComputedWeight) else result


def _shares(result: Tensor, weight: Tensor) -> bool:
    """Whether a result is a view of the weight."""
    with torch._C.DisableTorchFunctionSubclass():
        return result.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr() and not result.is_meta
