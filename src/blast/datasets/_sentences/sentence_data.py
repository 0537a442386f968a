"""Sentences with labels as padded tokens, with the interface of `VisionData`; batches depend on seed and step alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blast.datasets._vision.vision_data import batch_indices, spread_evenly
from blast.errors import BlastError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SentenceData:
    """Sentences, or pairs of them, with labels.

    Attributes:
        train_tokens: int64 `[n, length]`, padded on the right.
        train_labels: int64 `[n]`.
        test_tokens: int64, likewise.
        test_labels: int64, likewise.
        num_classes: Number of classes.
        pad_token: What fills the rest of a row.
        vocab_size: Tokens of the tokenizer.
        tokenizer_dir: Folder that transformers' `AutoTokenizer.from_pretrained` reads.
        digest: `"sha256:…"` of texts, labels and tokens.
    """

    train_tokens: Tensor
    train_labels: Tensor
    test_tokens: Tensor
    test_labels: Tensor
    num_classes: int
    pad_token: int
    vocab_size: int
    tokenizer_dir: Path
    digest: str

    @property
    def counts(self) -> dict[str, int]:
        """Sentences of both splits."""
        return {"train": len(self.train_labels), "test": len(self.test_labels)}

    @property
    def length(self) -> int:
        """Tokens of the longest sentence that a row can hold."""
        return self.train_tokens.shape[1]

    def facts(self, name: str) -> dict[str, Any]:
        """What a record keeps of the dataset."""
        return {
            "name": name,
            "digest": self.digest,
            "counts": self.counts,
            "num_classes": self.num_classes,
            "vocab_size": self.vocab_size,
            "tokenizer_dir": str(self.tokenizer_dir),
        }

    def train_batch(self, step: int, batch: int, seed: int) -> tuple[Tensor, Tensor]:
        """The batch of one step, as `VisionData.train_batch`: tokens `[batch, longest]` and labels `[batch]`."""
        import torch

        index = torch.from_numpy(batch_indices(len(self.train_labels), step, batch, seed))
        return self._cut(self.train_tokens[index]), self.train_labels[index]

    def held_out_halves(self) -> tuple[SentenceData, SentenceData]:
        """The same data, once with the test sentences of even number alone, once with those of odd number.

        Returns:
            The data for validation and the data for the test. The sentences are counted from 0.

        Raises:
            BlastError: if there is only one.
        """
        if len(self.test_labels) < 2:
            raise BlastError("there is only one test sentence, which cannot be halved; take another dataset.")
        even, odd = (
            replace(self, test_tokens=self.test_tokens[first::2], test_labels=self.test_labels[first::2])
            for first in (0, 1)
        )
        return even, odd

    def training_part(self, count: int) -> SentenceData:
        """The same data with `count` training sentences in place of the test sentences, as in `VisionData`.

        They are spread evenly over all; a larger count takes all of them.
        """
        chosen = spread_evenly(len(self.train_labels), count)
        return replace(self, test_tokens=self.train_tokens[chosen], test_labels=self.train_labels[chosen])

    def test_batches(self, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The test sentences in their order, `batch` at a time."""
        for start in range(0, len(self.test_labels), batch):
            part = slice(start, start + batch)
            yield self._cut(self.test_tokens[part]), self.test_labels[part]

    def test(self, limit: int | None = None) -> tuple[Tensor, Tensor]:
        """All test sentences or the first `limit`, and their labels."""
        return self._cut(self.test_tokens[:limit]), self.test_labels[:limit]

    def _cut(self, tokens: Tensor) -> Tensor:
        """Rows without the columns at the end that are padding in all of them."""
        used = (tokens != self.pad_token).any(0).nonzero()
        return tokens[:, : int(used[-1]) + 1 if len(used) else 1]
