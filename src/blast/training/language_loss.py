"""Logits and loss of whole sequences in training, by the fast ways that transformers and torch do not take unasked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blast.block_sparse.sharding import sharded_modules
from blast.training.compilation import cross_entropy

UNPADDED = "unpadded_sdpa"

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


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


def token_loss_of(compiled: bool) -> Loss:
    """The mean cross-entropy of next tokens, nats: a function of model, tokens and targets `[batch, length]`.

    Args:
        compiled: Whether head and loss are compiled, together where nothing wraps the model: the logits are then never
            held in float32, and 50257 words, which no tensor core takes well, are filled up by the compiler.
    """
    if not compiled:
        return lambda model, tokens, targets: cross_entropy(token_logits(model, tokens), targets)
    whole, loss_alone = torch.compile(_head_loss), torch.compile(cross_entropy)

    def token_loss(model: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
        if not hasattr(model, "base_model") or sharded_modules(model):
            # What gathers parameters and gradients hangs on the call of the whole.
            return loss_alone(token_logits(model, tokens), targets)
        with _unpadded(model.config):
            hidden = model.base_model(tokens, use_cache=False).last_hidden_state
        head = model.get_output_embeddings()
        return whole(hidden, head.weight, getattr(head, "bias", None), targets)

    return token_loss


def _head_loss(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """The loss from what the head gets, `[batch, length, hidden]`, its weights `[words, hidden]` and bias `[words]`."""
    return cross_entropy(F.linear(hidden, weight, bias), targets)


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
