"""Cuts an attention into equal runs of heads. Queries stay with the keys and values that they attend to."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from blast.errors import BlastError
from blast.tensor_parallel.matrices import Cut

# Names of the output projection; what stands before it tells the two forms apart.
SEPARATE, PACKED = ("q_proj", "k_proj", "v_proj", "o_proj"), ("c_attn", "c_proj")


class Heads(NamedTuple):
    """Heads of one process: the first and how many.

    Attributes:
        query: Of the queries.
        cached: Of the keys and values.
    """

    query: tuple[int, int]
    cached: tuple[int, int]


def heads_of(config: Any, rank: int, size: int) -> Heads:
    """The heads of one process.

    With more processes than heads of keys and values, several processes hold the same of these.

    Args:
        config: The config of the model.
        rank: The number of the process.
        size: The number of processes.

    Raises:
        BlastError: if the number of processes does not divide the heads.
    """
    heads = config.num_attention_heads
    cached = getattr(config, "num_key_value_heads", None) or heads
    if not _fits(heads, cached, size):
        fitting = [n for n in range(1, heads + 1) if _fits(heads, cached, n)]
        *others, last = map(str, fitting)
        raise BlastError(
            f"a model with {heads} query heads and {cached} key-value heads cannot be split over {size} processes; "
            f"start {', '.join(others)} or {last}."
        )
    run = heads // size
    # Several processes share a head of keys and values if there are fewer of these than processes.
    first = rank * cached // size
    return Heads((rank * run, run), (first, max(1, cached // size)))


def cut_attention(name: str, module: nn.Module, heads: Heads, first: bool) -> list[Cut]:
    """What one process keeps of the matrices of an attention; its sizes are changed in place.

    Args:
        name: Its name in the model.
        module: The attention, in the form of Llama or of GPT-2.
        heads: The heads of this process.
        first: Whether this process adds the bias of the output.

    Returns:
        The cuts; the outputs of the last matrix have to be added up.
    """
    attention: Any = module
    width = attention.head_dim
    query, cached = (_features(*run, width) for run in heads)
    if is_packed(module):
        whole = attention.num_heads * width
        attention.num_heads, attention.embed_dim, attention.split_size = heads.query[1], query.numel(), query.numel()
        packed = torch.cat([part * whole + query for part in range(3)])
        return [Cut(f"{name}.c_attn", rows=packed), Cut(f"{name}.c_proj", cols=query, bias=first)]
    attention.num_key_value_groups = heads.query[1] // heads.cached[1]
    return [
        Cut(f"{name}.q_proj", rows=query),
        Cut(f"{name}.k_proj", rows=cached),
        Cut(f"{name}.v_proj", rows=cached),
        Cut(f"{name}.o_proj", cols=query, bias=first),
    ]


def is_attention(module: nn.Module) -> bool:
    """Whether a module is an attention that `cut_attention` knows."""
    children = module._modules
    return all(name in children for name in SEPARATE) or is_packed(module)


def is_packed(module: nn.Module) -> bool:
    """Whether one matrix holds queries, keys and values (GPT-2)."""
    return all(name in module._modules for name in PACKED)


def _fits(heads: int, cached: int, size: int) -> bool:
    return not heads % size and (not cached % size or not size % cached)


def _features(first: int, count: int, width: int) -> Tensor:
    return torch.arange(first * width, (first + count) * width)
