"""Cuts the embedding and the head of a language model into runs of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from blast.tensor_parallel.matrices import Cut, dense_parts, shrink
from blast.tensor_parallel.parts import Part
from blast.tensor_parallel.processes import Processes


class Vocabulary(NamedTuple):
    """The tokens of each process, and the modules that hold a row for each token.

    Attributes:
        edges: The first token of each process, and the number of tokens at the end.
        embedding: Name of the embedding of the input; None if it stays whole.
        head: Name of the layer that gives the logits; None if it stays whole, or there is none.
    """

    edges: list[int]
    embedding: str | None
    head: str | None


def cut_vocabulary(
    model: nn.Module, matrices: Mapping[str, Any], rank: int, size: int
) -> tuple[Vocabulary, dict[str, Part]]:
    """Gives the embedding and the head the sizes of the part of one process, in place.

    Both stay whole if the head is block-sparse, or if there are fewer tokens than processes.

    Args:
        model: The dense model, with its parameters on the meta device.
        matrices: The block-sparse matrices of the checkpoint.
        rank: The number of the process.
        size: The number of processes.

    Returns:
        What was cut, and what is kept of the stored tensors.
    """
    whole: Any = model
    embedding, head = whole.get_input_embeddings(), whole.get_output_embeddings()
    tokens = embedding.num_embeddings
    edges = [tokens * number // size for number in range(size + 1)]
    names = {id(module): name for name, module in model.named_modules()}
    if tokens < size or names.get(id(head)) in matrices or (head is not None and head.out_features != tokens):
        return Vocabulary(edges, None, None), {}
    rows = torch.arange(edges[rank], edges[rank + 1])
    found = Vocabulary(edges, names[id(embedding)], names.get(id(head)))
    parts = {f"{found.embedding}.weight": Part(rows)}
    weight = embedding.weight
    tied = head is not None and head.weight is weight
    embedding.num_embeddings, embedding.padding_idx = rows.numel(), None
    embedding.weight = nn.Parameter(weight.new_empty(rows.numel(), weight.shape[1]))
    if found.head is not None:
        cut = Cut(found.head, rows=rows)
        parts |= dense_parts(cut, transposed=False)
        shrink(head, cut)
        if tied:
            head.weight = embedding.weight
    return found, parts


def join_vocabulary(model: nn.Module, vocabulary: Vocabulary, processes: Processes) -> None:
    """Makes the parts of embedding and head work with those of the other processes, in place."""
    if vocabulary.embedding is not None:
        embedding: Any = model.get_submodule(vocabulary.embedding)
        embedding.__class__ = EmbeddingPart
        embedding.first, embedding.processes = vocabulary.edges[processes.rank], processes
    if vocabulary.head is not None:
        sizes = [stop - start for start, stop in pairwise(vocabulary.edges)]
        head = model.get_submodule(vocabulary.head)
        head.register_forward_hook(lambda _module, _inputs, logits: processes.concatenate(logits, sizes))


class EmbeddingPart(nn.Embedding):
    """The rows of some tokens; the other processes have those of the others.

    Attributes:
        first: The first of its tokens.
        processes: The processes.
    """

    first: int
    processes: Processes

    def forward(self, tokens: Tensor) -> Tensor:
        """`[...]` to `[..., width]`, the same in each process."""
        own = tokens - self.first
        elsewhere = (own < 0) | (own >= self.num_embeddings)
        found = super().forward(own.masked_fill(elsewhere, 0)).masked_fill(elsewhere[..., None], 0)
        # All but one of the parts are zero, so the sum is the row of the whole embedding, bit by bit.
        return self.processes.add_up(found)
