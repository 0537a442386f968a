"""Stops a training that has gone wrong: at a loss that is not a number, or far above what it was and staying there."""

from __future__ import annotations

import math
import statistics
from collections import deque
from pathlib import Path

from blast.errors import BlastError

WINDOW = 50
PATIENCE = 10


class LossGuard:
    """Looks at the loss of each step.

    A spike is a loss more than `spike` nats above the median of the last 50 good ones. One bad batch is no divergence:
    10 in a row are.

    Args:
        spike: Nats above the median; 0 looks for NaN and infinity alone.
        state_file: Where the training state is saved, to be named in the error.
    """

    def __init__(self, spike: float, state_file: Path | None = None) -> None:
        self._spike, self._file = spike, state_file
        self._good: deque[float] = deque(maxlen=WINDOW)
        self._bad = 0
        self._saved: int | None = None

    @property
    def calm(self) -> bool:
        """Whether the last loss was no spike; a state is saved only then."""
        return self._bad == 0

    def saved(self, step: int) -> None:
        """Notes that the state before a step is on disk."""
        self._saved = step

    def check(self, step: int, loss: float) -> None:
        """Takes the loss of a step, in nats.

        Raises:
            BlastError: if it is not finite, or the tenth spike in a row; the message names the last good state.
        """
        if not math.isfinite(loss):
            raise self._stop(f"the loss is {loss} at step {step}")
        full = len(self._good) == WINDOW
        if self._spike and full and loss > statistics.median(self._good) + self._spike:
            self._bad += 1
            if self._bad == PATIENCE:
                usual = statistics.median(self._good)
                first = step - PATIENCE + 1
                raise self._stop(f"the loss is {loss:.3g} nats at step {step}, after {usual:.3g} before step {first}")
        else:
            self._good.append(loss)
            self._bad = 0

    def check_gradient(self, step: int, norm: float) -> None:
        """Takes the norm of the whole gradient of a step.

        Raises:
            BlastError: if it is not finite.
        """
        if not math.isfinite(norm):
            raise self._stop(f"the gradient is not finite at step {step} (its norm is {norm})")

    def _stop(self, what: str) -> BlastError:
        if self._file is None or self._saved is None:
            last = "no state was saved before it"
        else:
            last = f"the last good state is {self._file}, before step {self._saved}"
        return BlastError(
            f"{what}, and {last}; lower 'learning_rate' or 'clip' under 'training' in the config and run again."
        )
