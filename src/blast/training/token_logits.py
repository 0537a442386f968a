"""Logits of whole sequences in training, by attention that needs no look at the batch and no mask."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from torch import Tensor, nn

UNPADDED = "unpadded_sdpa"


def token_logits(model: nn.Module, tokens: Tensor) -> Tensor:
    """Logits `[batch, length, vocabulary]` of a causal language model of transformers.

    Left to itself it looks in each batch for several sequences packed into one, for which the GPU is waited for. In the
    capture of a CUDA graph, where it cannot look, it makes a mask, and with a mask there is no flash attention.

    Args:
        model: In training; what `DistributedDataParallel` wraps also.
        tokens: `[batch, length]`, without padding, one sequence a row.
    """
    with _unpadded(getattr(model, "module", model).config):
        return model(tokens, use_cache=False).logits


@contextmanager
def _unpadded(config: Any) -> Iterator[None]:
    """Within, a model of this configuration leaves causality to torch's own attention; one with another stays so."""
    before = config._attn_implementation
    if before == "sdpa":
        config._attn_implementation = _registered()
    try:
        yield
    finally:
        config._attn_implementation = before


@cache
def _registered() -> str:
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    # An attention that comes without a maker of masks gets none.
    AttentionInterface.register(UNPADDED, sdpa_attention_forward)
    return UNPADDED
