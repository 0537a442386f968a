"""The embedding and the head of each process, one after the other in one process."""

from __future__ import annotations

import copy
from typing import ClassVar

import torch
from torch import Tensor, nn

from blast.tensor_parallel.processes import Processes
from blast.tensor_parallel.vocabulary import cut_vocabulary, join_vocabulary

SIZE, TOKENS, WIDTH = 3, 8, 4


class Model(nn.Module):
    """An embedding and a head, as transformers names them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(TOKENS, WIDTH), nn.Linear(WIDTH, TOKENS, bias=False)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def get_output_embeddings(self) -> nn.Module:
        return self.head


class Alone(Processes):
    """Leaves each part as it is, and keeps the sizes that the logits would be put together by."""

    sizes: ClassVar[list[list[int]]] = []

    def concatenate(self, part: Tensor, sizes: list[int]) -> Tensor:
        self.sizes.append(sizes)
        return part


def test_parts_of_the_vocabulary_give_the_embedding_and_the_logits():
    whole = Model()
    rows, logits = [], []
    x, tokens = torch.randn(2, WIDTH), torch.arange(TOKENS)
    Alone.sizes.clear()
    for rank in range(SIZE):
        part = copy.deepcopy(whole)
        vocabulary, kept = cut_vocabulary(part, {}, rank, SIZE)
        own = slice(*vocabulary.edges[rank : rank + 2])
        assert {"embedding.weight", "head.weight"} <= kept.keys()
        with torch.no_grad():
            part.embedding.weight.copy_(whole.embedding.weight[own])
            part.head.weight.copy_(whole.head.weight[own])
        join_vocabulary(part, vocabulary, Alone(None, rank, SIZE))
        rows.append(part.embedding(tokens))
        logits.append(part.head(x))
    assert torch.equal(sum(rows), whole.embedding.weight)
    torch.testing.assert_close(torch.cat(logits, dim=-1), whole.head(x))
    assert Alone.sizes == [[each.shape[-1] for each in logits]] * SIZE
