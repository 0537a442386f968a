"""Logits and loss of whole sequences in training, on fast paths that transformers and torch do not use by default."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blast.block_sparse.sharding import sharded_modules
from blast.model.attention import attention
from blast.training.compilation import cross_entropy

UNPADDED = "unpadded_sdpa"

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def token_logits(model: nn.Module, tokens: Tensor) -> Tensor:
    """Logits `[batch, length, vocabulary]` of a causal language model of transformers.

    By default transformers checks each batch for packed sequences, and the CPU waits for the GPU. During the capture of
    a CUDA graph it cannot check and creates a mask; with a mask there is no flash attention. This function avoids both.

    Args:
        model: In training; may be wrapped in `DistributedDataParallel`.
        tokens: `[batch, length]`, without padding, one sequence a row.
    """
    with _unpadded(getattr(model, "module", model).config):
        return model(tokens, use_cache=False).logits


def token_loss_of(compiled: bool) -> Loss:
    """The mean cross-entropy of next tokens, nats: a function of model, tokens and targets `[batch, length]`.

    Args:
        compiled: Whether head and loss are compiled; without a wrapper, together. Compiled together, the logits are
            never stored in float32, and the compiler pads a vocabulary of 50257, which tensor cores handle badly.
    """
    if not compiled:
        return lambda model, tokens, targets: cross_entropy(token_logits(model, tokens), targets)
    whole, loss_alone = torch.compile(_head_loss), torch.compile(cross_entropy)

    def token_loss(model: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
        if not hasattr(model, "base_model") or sharded_modules(model):
            # The hooks that gather parameters and gradients run only in a call of the whole model.
            return loss_alone(token_logits(model, tokens), targets)
        return whole(hidden_states(model, tokens)[-1], *head_of(model), targets)

    return token_loss


def hidden_states(model: nn.Module, tokens: Tensor, every: bool = False) -> tuple[Tensor, ...]:
    """Hidden states `[batch, length, width]` of a causal language model: the input of its head, last.

    Args:
        model: Not wrapped; not sharded.
        tokens: `[batch, length]`, without padding.
        every: Whether to return the output of each layer too.
    """
    with _unpadded(model.config):
        out = model.base_model(tokens, use_cache=False, output_hidden_states=every)
    # The last one of `hidden_states` is the normalised output again.
    return (*out.hidden_states[1:-1], out.last_hidden_state) if every else (out.last_hidden_state,)


def head_of(model: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight `[vocabulary, width]` and bias of the output head."""
    head = model.get_output_embeddings()
    return head.weight, getattr(head, "bias", None)


def _head_loss(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """The loss from the input of the head `[batch, length, hidden]`, its weight `[vocabulary, hidden]` and its bias."""
    return cross_entropy(F.linear(hidden, weight, bias), targets)


def _unpadded(config: Any) -> AbstractContextManager[None]:
    """Within the context, SDPA attention uses `is_causal` instead of a mask; other attention is unchanged."""
    return attention(config, _registered()) if config._attn_implementation == "sdpa" else nullcontext()


@cache
def _registered() -> str:
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    # transformers creates no mask for an attention without a registered mask function.
    AttentionInterface.register(UNPADDED, sdpa_attention_forward)
    return UNPADDED
