"""Attention of a session: grouped key-value heads are not repeated, and unused cache is not read."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blast.model.attention import attention

NAME = "blast_session"
# Tokens of the cache that FlexAttention reads or skips together.
FLEX_BLOCK = 128


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    block_mask: Any = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention in the interface of transformers.

    Args:
        module: The attention layer.
        query: `[batch, heads, tokens, head_size]`.
        key: `[batch, key_value_heads, cached, head_size]`; `value` likewise.
        attention_mask: `[batch, 1, tokens, cached]`, bool; None: causal.
        scaling: Factor of the products; by default `head_size ** -0.5`.
        block_mask: Mask of FlexAttention, in the place of `attention_mask`.

    Returns:
        `[batch, tokens, heads, head_size]`, and None.
    """
    batch, heads, tokens, size = query.shape
    shared = heads // key.shape[1]
    if block_mask is not None:
        from torch.nn.attention.flex_attention import flex_attention

        out = flex_attention(query, key, value, block_mask=block_mask, scale=scaling, enable_gqa=shared > 1)
    elif tokens == 1:
        # The query heads that share a key-value head are rows of one product.
        grouped = query.reshape(batch, key.shape[1], shared, size)
        out = F.scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scaling)
        out = out.reshape(batch, heads, 1, size)
    else:
        if attention_mask is not None and shared > 1:
            # With a mask, only the slow kernel takes grouped heads.
            key, value = (part.repeat_interleave(shared, dim=1) for part in (key, value))
            shared = 1
        out = F.scaled_dot_product_attention(
            query, key, value, attention_mask, is_causal=attention_mask is None, scale=scaling, enable_gqa=shared > 1
        )
    return out.transpose(1, 2), None


def step_mask(position: Tensor, padding: Tensor, capacity: int) -> Tensor:
    """Which cached tokens a step reads: `[batch, 1, 1, capacity]`, bool.

    Args:
        position: Place of the token of this step, `[1]`.
        padding: Number of padding tokens before each prompt, `[batch]`.
        capacity: Size of the cache.
    """
    places = torch.arange(capacity, device=position.device)
    return ((places <= position) & (places >= padding[:, None]))[:, None, None]


def prompt_mask(padding: Tensor, tokens: int) -> Tensor:
    """Which tokens of padded prompts each token reads: `[batch, 1, tokens, tokens]`, bool.

    A padding token reads itself, because a row without any token gives NaN.
    """
    places = torch.arange(tokens, device=padding.device)
    causal = places[:, None] >= places
    real = places >= padding[:, None]
    return ((causal & real[:, None]) | torch.eye(tokens, dtype=torch.bool, device=padding.device))[:, None]


def step_block_mask(position: Tensor, padding: Tensor, capacity: int) -> Any:
    """The mask of `step_mask` for FlexAttention, which skips the blocks of the cache after the last token.

    It reads `position` and `padding` at each call. `count_blocks` says how many blocks there are to read.
    """
    from torch.nn.attention.flex_attention import BlockMask

    batch, blocks = len(padding), -(-capacity // FLEX_BLOCK)
    count = torch.ones(batch, 1, 1, dtype=torch.int32, device=position.device)
    order = torch.arange(blocks, dtype=torch.int32, device=position.device).repeat(batch, 1, 1, 1)

    def reads(b: Tensor, _head: Tensor, _query: Tensor, place: Tensor) -> Tensor:
        return (place <= position[0]) & (place >= padding[b])

    return BlockMask.from_kv_blocks(
        count, order, BLOCK_SIZE=(FLEX_BLOCK, FLEX_BLOCK), mask_mod=reads, seq_lengths=(1, capacity)
    )


def count_blocks(block_mask: Any, position: Tensor) -> None:
    """Sets in place how many blocks of the cache the next step reads."""
    block_mask.kv_num_blocks.copy_((position // FLEX_BLOCK + 1).expand_as(block_mask.kv_num_blocks))


def session_attention(config: Any) -> AbstractContextManager[None]:
    """Within the context the model of this config uses `attend`, and transformers makes no masks."""
    return attention(config, _registered())


@cache
def _registered() -> str:
    from transformers import AttentionInterface

    # transformers makes no mask for an attention without a registered mask function.
    AttentionInterface.register(NAME, attend)
    return NAME
