"""Batches for timing optimisation steps; they need no network and no data set."""

from __future__ import annotations

import re
import sysconfig
from collections import Counter
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

WORDS = "words of Python's standard library, numbered by frequency"
PIXELS = "random pixels"


def token_batch(batch: int, length: int, vocab: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids of real text and the ids that follow them, `[batch, length]` each.

    The text is the standard library of the running Python. Words and other single characters are numbered by frequency,
    and numbers beyond the vocabulary are clamped. The time of an embedding's gradient depends on such uneven counts.

    Args:
        batch: Sequences.
        length: Ids in a sequence.
        vocab: Ids are below this number.
        device: Device of the result.
    """
    needed = batch * (length + 1)
    ids = torch.tensor(_word_numbers(needed)[:needed]).clamp_max(vocab - 1)
    rows = ids.view(batch, length + 1).to(device)
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def image_batch(batch: int, side: int, classes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Normally distributed images `[batch, 3, side, side]` and random labels; pixel values do not affect the time."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, side, side, generator=generator)
    return images.to(device), torch.randint(classes, (batch,), generator=generator).to(device)


@cache
def _word_numbers(count: int) -> list[int]:
    words: list[str] = []
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        words += re.findall(r"\w+|[^\w\s]", file.read_text(encoding="utf-8", errors="replace"))
        if len(words) >= count:
            break
    words = words * -(-count // len(words))
    ranks = {word: rank for rank, (word, _) in enumerate(Counter(words).most_common())}
    return [ranks[word] for word in words]
