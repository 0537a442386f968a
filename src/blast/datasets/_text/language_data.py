"""Tokens on disk, with training batches that depend on seed and step alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from blast.errors import BlastError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from blast.datasets._text.token_shards import TokenShards


@dataclass(frozen=True)
class LanguageData:
    """A tokenised text dataset.

    Attributes:
        train: Tokens of the training documents, packed: one after the other, each ended by the end-of-text token;
            memory-mapped.
        validation: Likewise of the documents held out.
        token_bytes: Bytes that each token stands for, int64 `[vocab_size]`.
        end_of_text: The token that ends each document.
        tokenizer_dir: Folder that transformers' `AutoTokenizer.from_pretrained` reads.
        digest: `"sha256:…"` of texts, tokenizer and tokens.
        counts: Documents, bytes and tokens of both splits.
    """

    train: np.ndarray | TokenShards
    validation: np.ndarray | TokenShards
    token_bytes: np.ndarray
    end_of_text: int
    tokenizer_dir: Path
    digest: str
    counts: dict[str, int]

    @property
    def vocab_size(self) -> int:
        """Tokens of the tokenizer."""
        return len(self.token_bytes)

    def train_batch(self, step: int, batch: int, length: int, seed: int) -> Tensor:
        """Windows from random places of the training tokens.

        Args:
            step: Counted from 0.
            batch: Windows.
            length: Tokens predicted in each.
            seed: Seed of the places.

        Returns:
            int64 `[batch, length + 1]`: inputs are `[:, :-1]`, targets `[:, 1:]`.
        """
        import numpy as np

        self._check_length(self.train, length, "training")
        places = np.random.default_rng([seed, step]).integers(0, len(self.train) - length, batch)
        return self._windows(self.train, places, length)

    def validation_chunks(self, length: int, limit: int | None = None) -> Tensor:
        """Windows of the validation tokens that overlap in no target, spread evenly over all of them.

        Args:
            length: Tokens predicted in each.
            limit: At most so many windows.

        Returns:
            int64 `[windows, length + 1]`.
        """
        import numpy as np

        self._check_length(self.validation, length, "validation")
        there = (len(self.validation) - 1) // length
        wanted = min(limit or there, there)
        return self._windows(self.validation, np.arange(wanted) * there // wanted * length, length)

    def held_out_documents(self) -> list[np.ndarray]:
        """The tokens of each held-out document, in their order, the end-of-text token included."""
        import numpy as np

        tokens = np.asarray(self.validation[:])
        ends = np.flatnonzero(tokens == self.end_of_text) + 1
        return [document for document in np.split(tokens, ends) if len(document)]

    def held_out_halves(self) -> tuple[LanguageData, LanguageData]:
        """The same data, once with the held-out documents of even number alone, once with those of odd number.

        Returns:
            The data for validation and the data for the test. Documents are counted from 0.

        Raises:
            BlastError: if only one document is held out.
        """
        documents = self.held_out_documents()
        if len(documents) < 2:
            raise BlastError("only one document is held out, which cannot be halved; hold out a larger share.")
        return self._holding_out(documents[0::2]), self._holding_out(documents[1::2])

    def _holding_out(self, documents: list[np.ndarray]) -> LanguageData:
        import numpy as np

        tokens = np.concatenate(documents)
        counts = {"documents": len(documents), "bytes": int(self.token_bytes[tokens].sum()), "tokens": len(tokens)}
        named = {f"validation_{what}": count for what, count in counts.items()}
        return replace(self, validation=tokens, counts=self.counts | named)

    def training_part(self, count: int) -> LanguageData:
        """The same data with the training tokens in place of the held-out ones, to measure what a model has learnt.

        Args:
            count: For images, how many. Of text, `validation_chunks` takes as many windows as are wanted.
        """
        return replace(self, validation=self.train)

    def bytes_of(self, tokens: Tensor) -> int:
        """Bytes of text that these tokens stand for: what a loss is divided by to give bits a byte."""
        return int(self.token_bytes[tokens.numpy()].sum())

    @staticmethod
    def _windows(tokens: np.ndarray | TokenShards, places: np.ndarray, length: int) -> Tensor:
        import numpy as np
        import torch

        return torch.from_numpy(tokens[places[:, None] + np.arange(length + 1)].astype(np.int64))

    @staticmethod
    def _check_length(tokens: np.ndarray | TokenShards, length: int, split: str) -> None:
        if len(tokens) <= length:
            raise BlastError(
                f"the {split} text has {len(tokens)} tokens, too few for windows of {length}; shorten them."
            )
