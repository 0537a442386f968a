"""Projections of one input as one product: query, key and value, and gate and up of a dense MLP.

Their weights are moved into one matrix each, and the parameters become parts of it: the same parameters with the same
values, stored once. Whatever changes them in place changes the matrix.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blast.generation.attention import attend
from blast.layers.hooked import HOOKS

# The classes of transformers whose forward is computed here in its place, and their projections.
ATTENTION = ("LlamaAttention", "Qwen2Attention", "Qwen3Attention")
MLP = ("LlamaMLP", "Qwen2MLP", "Qwen3MLP")
PROJECTIONS = {
    **dict.fromkeys(ATTENTION, ("q_proj", "k_proj", "v_proj")),
    **dict.fromkeys(MLP, ("gate_proj", "up_proj")),
}
# A matrix product reads memory 16 bytes at a time.
ALIGNMENT = 16


class Merged(NamedTuple):
    """The matrix of some projections of one input.

    Attributes:
        weight: `[sum of sizes, in]`.
        bias: `[sum of sizes]` or None.
        sizes: Features of each projection.
        moved: Whether weights were moved into it, when it was made.
    """

    weight: Tensor
    bias: Tensor | None
    sizes: tuple[int, ...]
    moved: bool

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """The results of the projections, `[..., size]` each."""
        return F.linear(x, self.weight, self.bias).split(self.sizes, dim=-1)


class MergedProjections:
    """The merged projections of a model. Making it moves the weights of those that can be merged.

    Others stay as they are: pruned ones, quantised ones, with adapters or hooks, weights that have a gradient or share
    their memory with something else, and classes that this module does not know.

    Args:
        model: A language model of transformers.
    """

    def __init__(self, model: nn.Module) -> None:
        self._found: list[tuple[nn.Module, type, Merged]] = []
        users = _users(model)
        moved = False
        for module in model.modules():
            linears = [module.get_submodule(name) for name in _projections_of(module)]
            merged = merge(linears, users) if linears else None
            if merged is not None:
                self._found.append((module, type(module), merged))
                moved |= merged.moved
        if moved and torch.cuda.is_initialized():
            # The old places are too small for other matrices, and would stay reserved.
            torch.cuda.empty_cache()

    def __len__(self) -> int:
        return len(self._found)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within the context the modules compute with their merged matrices."""
        try:
            for module, kind, merged in self._found:
                module.__dict__["merged"] = merged
                module.__class__ = _merged_class(kind)
            yield
        finally:
            for module, kind, _ in self._found:
                module.__class__ = kind
                module.__dict__.pop("merged", None)


def _users(model: nn.Module) -> dict[int, int]:
    """How many tensors of a model use a memory, by its address."""
    found: dict[int, int] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        # Others, of quantised models for one, need not have a memory of their own.
        if type(tensor) in (Tensor, nn.Parameter) and not tensor.is_meta:
            place = tensor.untyped_storage().data_ptr()
            found[place] = found.get(place, 0) + 1
    return found


def merge(linears: Sequence[nn.Module], users: dict[int, int] | None = None) -> Merged | None:
    """Moves the weights of some linear layers of one input into one matrix, and their biases into one vector.

    Args:
        linears: The layers.
        users: How many tensors of the model use a memory, by its address. Memory that others use stays.

    Returns:
        The matrix; None if the layers cannot be merged, and then nothing was changed.
    """
    if not all(_is_plain(linear) for linear in linears):
        return None
    weights = [linear._parameters["weight"] for linear in linears]
    biases = [linear._parameters["bias"] for linear in linears]
    if any(bias is None for bias in biases) and any(bias is not None for bias in biases):
        return None
    if not _can_join(weights, users) or (biases[0] is not None and not _can_join(biases, users)):
        return None
    sizes = tuple(len(weight) for weight in weights if weight is not None)
    moved = not _lie_together(weights)
    return Merged(_joined(weights), None if biases[0] is None else _joined(biases), sizes, moved)


def _projections_of(module: nn.Module) -> tuple[str, ...]:
    kind = type(module)
    known = kind.__module__.startswith("transformers.models.") and "forward" not in module.__dict__
    return PROJECTIONS.get(kind.__name__, ()) if known else ()


def _is_plain(linear: nn.Module) -> bool:
    """Whether a layer is `x · Wᵀ + bias` and nothing else."""
    if type(linear) is not nn.Linear or "forward" in linear.__dict__:
        return False
    return not any(getattr(linear, hooks) for hooks in HOOKS[:-1])


def _can_join(tensors: Sequence[Any], users: dict[int, int] | None) -> bool:
    first = tensors[0]
    for tensor in tensors:
        if type(tensor) is not nn.Parameter or tensor.is_meta or tensor.is_inference() or not tensor.is_contiguous():
            return False
        if (tensor.dtype, tensor.device, tensor.shape[1:]) != (first.dtype, first.device, first.shape[1:]):
            return False
        if tensor.nbytes % ALIGNMENT:
            return False
    if len({id(tensor) for tensor in tensors}) < len(tensors):
        return False
    return _lie_together(tensors) or all(_is_alone(tensor, users) for tensor in tensors)


def _is_alone(tensor: Tensor, users: dict[int, int] | None) -> bool:
    """Whether a tensor has memory of its own, and is not in training, where a captured step may read that memory."""
    storage = tensor.untyped_storage()
    return (
        tensor.grad is None
        and storage.nbytes() == tensor.nbytes
        and (users is None or users.get(storage.data_ptr(), 1) == 1)
    )


def _lie_together(tensors: Sequence[Tensor]) -> bool:
    """Whether the tensors are one after the other in one memory."""
    storage, at = tensors[0].untyped_storage().data_ptr(), tensors[0].storage_offset()
    for tensor in tensors:
        if tensor.untyped_storage().data_ptr() != storage or tensor.storage_offset() != at:
            return False
        at += tensor.numel()
    return True


def _joined(tensors: Sequence[Any]) -> Tensor:
    """The tensors as one, whose parts they are from now on."""
    with torch.inference_mode(False), torch.no_grad():
        if not _lie_together(tensors):
            whole = torch.cat([tensor.detach() for tensor in tensors])
            for tensor, part in zip(tensors, whole.split([len(each) for each in tensors]), strict=True):
                tensor.data = part
        first = tensors[0].detach()
        rows = sum(len(tensor) for tensor in tensors)
        return first.as_strided((rows, *first.shape[1:]), first.stride())


@cache
def _merged_class(kind: Any) -> Any:
    """A subclass of an attention or an MLP of transformers that computes with `merged`."""
    forward = _mlp_forward if kind.__name__ in MLP else _attention_forward
    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def _mlp_forward(self: Any, x: Tensor) -> Tensor:
    gate, up = self.merged(x)
    out: Tensor = self.down_proj(self.act_fn(gate) * up)
    return out


def _attention_forward(
    self: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    **more: Any,
) -> tuple[Tensor, Tensor | None]:
    shape = hidden_states.shape[:-1]
    query, key, value = (part.view(*shape, -1, self.head_dim) for part in self.merged(hidden_states))
    if hasattr(self, "q_norm"):
        query, key = self.q_norm(query), self.k_norm(key)
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    # Each family's own rotation.
    rotate = sys.modules[type(self).__module__].apply_rotary_pos_emb
    query, key = rotate(query, key, *position_embeddings)
    if past_key_values is not None:
        key, value = past_key_values.update(key, value, self.layer_idx)
    out, weights = attend(self, query, key, value, attention_mask, scaling=self.scaling, **more)
    return self.o_proj(out.reshape(*shape, -1)), weights
