"""Tokens on disk, with training batches that depend on seed and step alone."""

from __future__ import annotations

from dataclasses import dataclass
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
        tokenizer_dir: Folder that transformers' `AutoTokenizer.from_pretrained` reads.
        digest: `"sha256:…"` of texts, tokenizer and tokens.
        counts: Documents, bytes and tokens of both splits.
    """

    train: np.ndarray | TokenShards
    validation: np.ndarray | TokenShards
    token_bytes: np.ndarray
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
