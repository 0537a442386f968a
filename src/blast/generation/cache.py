"""Keys and values of a session, in memory that stays where it is, so that CUDA graphs can read and write it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache


class SessionCache(Cache):  # type: ignore[misc]
    """Keys and values of all layers, for one prompt and the steps after it.

    Args:
        position: How many tokens are cached, `[1]`, int64; whoever runs the model counts it up.
        capacity: The largest number of tokens.
        layers: Number of layers of the model.

    Attributes:
        prompt: Whether the next forward pass is that of the prompt. Attention then gets the keys of the prompt alone.
        used: Number of cached tokens if the CPU knows it: attention then gets that part. None: attention gets all
            `capacity` tokens and needs a mask.
        keys: `[layers, batch, heads, capacity, head_size]` once the model ran; `values` likewise.
    """

    def __init__(self, position: Tensor, capacity: int, layers: int) -> None:
        super().__init__(layers=[])
        self.position, self.capacity, self._count = position, capacity, layers
        self.prompt = True
        self.used: int | None = None
        self.keys, self.values = torch.empty(0), torch.empty(0)
        self._layer: tuple[Tensor, Tensor] | None = None

    @property
    def bytes(self) -> int:
        """Memory of the keys and values."""
        return self.keys.nbytes + self.values.nbytes

    def select(self, layer: int | None) -> None:
        """Sets the layer that runs next, whatever number it gives to `update`; None: each gives its own.

        Compiled code that never reads the number of its layer is the same for all layers.
        """
        self._layer = None if layer is None else (self.keys[layer], self.values[layer])

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Stores keys and values `[batch, heads, tokens, head_size]`; returns those that attention reads."""
        if self._layer is None:
            if self.prompt and not self.keys.numel():
                self.keys, self.values = (
                    new.new_zeros(self._count, *new.shape[:2], self.capacity, new.shape[3])
                    for new in (key_states, value_states)
                )
            keys, values = self.keys[layer_idx], self.values[layer_idx]
        else:
            # Compiled code must not see the whole besides: of two inputs in one memory, torch 2.15 with dynamic shapes
            # writes to the first layer in the place of this one.
            keys, values = self._layer
        if self.prompt:
            tokens = key_states.shape[2]
            keys[:, :, :tokens].copy_(key_states)
            values[:, :, :tokens].copy_(value_states)
            return key_states, value_states
        keys.index_copy_(2, self.position, key_states)
        values.index_copy_(2, self.position, value_states)
        if self.used is None:
            return keys, values
        return keys[:, :, : self.used], values[:, :, : self.used]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of cached tokens. Waits for a GPU; the models do not ask if they are given positions."""
        return 0 if self.prompt else int(self.position)


def capacity_for(tokens: int, longest: int | None) -> int:
    """Capacity of a cache for `tokens` tokens: the next multiple of 256, so that sessions are used again.

    Args:
        tokens: Prompt and new tokens.
        longest: Tokens that the model takes at most; None if it has no limit.
    """
    rounded = -(-tokens // 256) * 256
    return rounded if longest is None else max(tokens, min(rounded, longest))


def empty(cache: SessionCache) -> None:
    """Forgets the cached tokens."""
    with torch.no_grad():
        cache.position.zero_()
    cache.prompt, cache.used = True, None
