"""Says of a pruned model that it is wrecked, and what to change.

The margin of a model is what it knows beyond a reference that reads no context: the loss of the reference minus that
of the model, both in nats a token on the same text. The reference is the *unigram*: each token has the
share that it has in the training text. Where the text is not at hand, it is guessing among all tokens, which has a loss
of ln(vocabulary) and gives a larger margin. A ratio of two margins is the same in nats a token and in bits a byte.

A model is wrecked if its loss is at least that of guessing, or if it keeps less than half of dense's margin.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

# A model that keeps less than this share of dense's margin above chance has lost most of what it could do.
KEPT = 0.5
REMEDY = "prune less, train for more steps or add a teacher, and keep the first and the last layers dense"


def wrecked(loss: float | None = None, vocabulary: int | None = None, kept: float | None = None) -> str | None:
    """One sentence about a model that is worse than guessing, or has lost more than half of its margin; else None.

    Args:
        loss: Its loss on held-out text in nats a token; None if unknown. NaN counts as worse than guessing.
        vocabulary: Number of tokens; guessing among them all gives ln of it.
        kept: Share of dense's margin above chance that it keeps, see `kept_margin`; None or NaN if unknown.

    Example:
        >>> wrecked(loss=3.1, vocabulary=50257, kept=0.9) is None
        True
        >>> wrecked(kept=0.31)[:75]
        'wrecked: it keeps 31 % of the margin of the dense model above chance; prune'
    """
    if loss is not None and vocabulary is not None and not loss < math.log(vocabulary):
        return (
            f"wrecked: its loss of {loss:.2f} nats a token is no better than the {math.log(vocabulary):.2f} of "
            f"guessing among all {vocabulary} tokens; lower the learning rate, {REMEDY}."
        )
    if kept is not None and kept < KEPT:
        return f"wrecked: it keeps {100 * kept:.0f} % of the margin of the dense model above chance; {REMEDY}."
    return None


def kept_margin(loss: float, dense: float, chance: float) -> float:
    """Share of dense's margin above chance that a model keeps: 1 as good as dense, 0 as good as chance.

    Args:
        loss: Of the model, nats a token (or bits a byte, then all three).
        dense: Of the dense model on the same text.
        chance: Of the reference on the same text: `unigram_loss`, or ln(vocabulary).

    Returns:
        The share; NaN where dense is itself no better than the reference.

    Example:
        >>> kept_margin(loss=4.0, dense=2.0, chance=7.0)
        0.6
    """
    return (chance - loss) / (chance - dense) if chance > dense else math.nan


def unigram_loss(train: np.ndarray, held_out: np.ndarray, vocabulary: int) -> float:
    """Loss on held-out tokens of a model that knows how often each token is in the training text, nats a token.

    Each count is one more than it is (Laplace), so that no held-out token is impossible.

    Args:
        train: Token ids of the training text, `[n]`.
        held_out: Token ids of the held-out text, `[m]`.
        vocabulary: Number of tokens.

    Example:
        >>> import numpy as np
        >>> round(unigram_loss(np.array([0, 0, 1]), np.array([0, 0]), 2), 3)  # ln(5 / 3)
        0.511
    """
    import numpy as np

    counts = np.bincount(np.asarray(train), minlength=vocabulary).astype(np.float64) + 1
    return float(-(np.log(counts) - np.log(counts.sum()))[np.asarray(held_out)].mean())
