"""Says of a pruned model that it is wrecked, and what to change."""

from __future__ import annotations

import math

# A model that keeps less than this share of dense's margin above chance has lost most of what it could do.
KEPT = 0.5
REMEDY = "prune less, train for more steps or add a teacher, and keep the first and the last layers dense"


def wrecked(loss: float | None = None, vocabulary: int | None = None, kept: float | None = None) -> str | None:
    """One sentence about a model that is worse than guessing, or has lost more than half of its margin; else None.

    Args:
        loss: Its loss on held-out text in nats a token; None if unknown. NaN counts as worse than guessing.
        vocabulary: Number of tokens; guessing among them all gives ln of it.
        kept: Share of dense's margin above chance that it keeps; None or NaN if unknown.

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
