"""What the user of `blast prune` asked for."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from blast.files import json_digest

AUTO = "auto"
STARTS = (AUTO, "one_shot", "gradual")


@dataclass(frozen=True)
class PruneOptions:
    """What the user asked for.

    Attributes:
        model: See `find_model`.
        text: See `read_text`.
        out: Folder of the result.
        sparsity: Share of empty blocks in the pruned matrices.
        block: Side of a block; None for the largest that fits.
        minutes: Time for the whole command; None if `steps` are given.
        steps: Optimization steps; None if `minutes` are given.
        teacher: Whether the dense model teaches the sparse one.
        length: Tokens a sequence.
        batch: Sequences a step.
        learning_rate: Its peak.
        seed: Seed of the order of the text.
        dense_layers: Layers that stay dense; `auto` for those that cost far more than the others.
        start: How the masks are found: `one_shot` before the training, `gradual` while it lasts, or `auto`.
    """

    model: str
    text: tuple[str, ...]
    out: Path
    sparsity: float
    block: int | None = None
    minutes: float | None = None
    steps: int | None = None
    teacher: bool = True
    length: int = 256
    batch: int = 2
    learning_rate: float = 3e-4
    seed: int = 0
    dense_layers: tuple[int, ...] | str = AUTO
    start: str = AUTO

    def plain(self) -> dict[str, Any]:
        """The options that determine the result, but for model and text, as JSON values."""
        values = asdict(self)
        for key in ("model", "text", "out"):
            del values[key]
        return values

    def key(self, model: str, text: str) -> str:
        """Digest of everything that determines the result.

        Args:
            model: Digest of the model.
            text: Digest of the text.
        """
        return json_digest([self.plain(), model, text])
