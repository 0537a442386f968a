"""Calls of a fused MLP that are repeated on a GPU: the launches of a call of the same shape, with another input.

The first call of a shape chooses configs, compiles and checks. The ones after it find that nothing has changed that the
launches depend on, and cost the CPU a fraction of the operator's dispatch and of Triton's own launch.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from blast_kernels.common.eager import is_plain
from torch import Tensor

from blast.layers.block_linear import BlockLinear
from blast.layers.fp8_linear import Fp8BlockLinear, Fp8Blocks

# Shapes that an MLP keeps. Decoding has one for each batch size; prompts bring others.
KEPT = 16


class _Held(NamedTuple):
    """A tensor of a layer as it was; an address of None: there was none of this name."""

    name: str
    address: int | None
    shape: torch.Size
    dtype: torch.dtype | None


class _Known(NamedTuple):
    replay: Any
    activation: str
    held: list[tuple[Any, ...] | None]


class MlpReplays:
    """The replays of one MLP by the shape of the input; a copy of it, or a pickle, has none.

    A replay holds addresses, and is used if the weights are where they were. Whoever changes masks calls `clear`.
    """

    def __init__(self) -> None:
        self._known: dict[torch.Size, _Known] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return MlpReplays, ()

    def clear(self) -> None:
        """Forgets them all."""
        self._known.clear()

    def find(self, x: Tensor, activation: str, layers: Sequence[BlockLinear]) -> Tensor | None:
        """The result for `x` by a replay; None if there is none that fits.

        Args:
            x: `[..., in]`.
            activation: Name of the activation.
            layers: The matrices of the MLP.
        """
        known = self._known.get(x.shape)
        if known is None or known.activation != activation or not _unchanged(layers, known.held):
            return None
        found: Tensor | None = known.replay(x)
        return found

    def add(self, x: Tensor, activation: str, layers: Sequence[BlockLinear], replay: Any, result: Tensor) -> None:
        """Keeps the replay of a call that was just made with `x`, if it gives the same result.

        It rests on parts of Triton that are not public, so it is tried once. A replay that gives something else is
        dropped, and so are all that follow; a warning says so.
        """
        self._known.pop(x.shape, None)
        held = [_held_by(layer) for layer in layers]
        if replay is None or None in held or _Trust.lost or _is_capturing():
            return
        again = replay(x)
        if again is None:
            return
        if not _same(again, result):
            _Trust.lost = True
            self.clear()
            warnings.warn(
                "repeating the launches of a fused MLP gave another result than the launches, so none are repeated in "
                "this process, and generating is slower; please report this with the versions of torch and triton.",
                stacklevel=4,
            )
            return
        while len(self._known) >= KEPT:
            self._known.pop(next(iter(self._known), x.shape), None)
        self._known[x.shape] = _Known(replay, activation, held)


class _Trust:
    """Whether a replay of this process ever gave a wrong result."""

    lost = False


def _same(again: Tensor, result: Tensor) -> bool:
    """Whether two results are equal up to rounding; sums of split rows may be added up in another order."""
    if not result.numel():
        return True
    near = 0.01 * result.nan_to_num(0.0, 0.0, 0.0).abs().max()
    same = (again == result) | (again.isnan() & result.isnan()) | ((again - result).abs() <= near)
    return bool(same.all())


def _is_capturing() -> bool:
    """Whether a CUDA graph is captured, in which nothing can be compared."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def may_replay(x: Tensor) -> bool:
    """Whether a call with `x` may be a replay: plain eager inference on a GPU."""
    return _on_gpu(x) and is_plain(x)


def _on_gpu(x: Tensor) -> bool:
    return x.is_cuda


def _held_by(layer: BlockLinear) -> tuple[Any, ...] | None:
    """What `_unchanged` compares; None if the kernels read something that is made at each call.

    Blocks in fp8 that were loaded are quantized at the next call, and blocks that are not contiguous are copied.
    """
    fp8: Fp8Blocks | None = None
    if isinstance(layer, Fp8BlockLinear):
        if layer.loaded is not None:
            return None
        fp8 = layer.fp8
    values = layer._parameters.get("values")
    if fp8 is None and (values is None or not values.is_contiguous()):
        return None
    parts = (("values", values), ("bias", layer._parameters.get("bias")))
    return fp8, tuple(
        _Held(name, None, torch.Size(), None) if part is None else _Held(name, part.data_ptr(), part.shape, part.dtype)
        for name, part in parts
    )


def _unchanged(layers: Sequence[BlockLinear], held: Sequence[tuple[Any, ...] | None]) -> bool:
    """Whether the layers hold tensors at the addresses, in the shapes and of the dtypes that they had."""
    for layer, (fp8, parts) in zip(layers, held, strict=True):  # type: ignore[misc]
        if fp8 is not None and not (
            isinstance(layer, Fp8BlockLinear) and layer.fp8 is fp8 and layer.loaded is None
        ):  # fmt: skip
            return False
        parameters = layer._parameters
        for name, address, shape, dtype in parts:
            part = parameters.get(name)
            if part is None or address is None:
                if part is not None or address is not None:
                    return False
                continue
            same = part.data_ptr() == address and part.dtype is dtype
            if not same or part.shape != shape or not part.is_contiguous():
                return False
    return True
