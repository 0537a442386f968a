"""The divergence check: stops a training whose loss is not finite, or stays far above its usual value."""

from __future__ import annotations

import math
import statistics
from collections import deque
from pathlib import Path

from blast.errors import BlastError

WINDOW = 50
PATIENCE = 10
REMEDY = "lower 'learning_rate' or 'clip' under 'training' in the config"


class DivergenceCheck:
    """Checks the loss and the gradient norm of each step.

    A spike is a loss more than `spike` nats above the median of the last 50 losses that were no spikes. One bad batch
    is no divergence, but 10 spikes in a row are.

    Args:
        spike: Nats above the median; 0 checks for NaN and infinity only.
        state_file: File of the training state, for the error message.
        remedy: What the error tells the user to do.
    """

    def __init__(self, spike: float, state_file: Path | None = None, remedy: str = REMEDY) -> None:
        self._spike, self._file, self._remedy = spike, state_file, remedy
        self._usual: deque[float] = deque(maxlen=WINDOW)
        self._spikes = 0
        self._saved: int | None = None

    @property
    def healthy(self) -> bool:
        """Whether the last loss was no spike; the training state is saved only then."""
        return self._spikes == 0

    def state_saved(self, step: int) -> None:
        """Notes that the state before a step is on disk."""
        self._saved = step

    def check(self, step: int, loss: float) -> None:
        """Checks the loss of a step, in nats.

        Raises:
            BlastError: if it is not finite, or the tenth spike in a row; the message names the last good state.
        """
        if not math.isfinite(loss):
            raise self._error(f"the loss is {loss} at step {step}")
        full = len(self._usual) == WINDOW
        if self._spike and full and loss > statistics.median(self._usual) + self._spike:
            self._spikes += 1
            if self._spikes == PATIENCE:
                usual = statistics.median(self._usual)
                first = step - PATIENCE + 1
                raise self._error(f"the loss is {loss:.3g} nats at step {step}, after {usual:.3g} before step {first}")
        else:
            self._usual.append(loss)
            self._spikes = 0

    def check_gradient(self, step: int, norm: float) -> None:
        """Checks the norm of the whole gradient of a step.

        Raises:
            BlastError: if it is not finite; the message names the last good state.
        """
        if not math.isfinite(norm):
            raise self._error(f"the gradient is not finite at step {step} (its norm is {norm})")

    def _error(self, what: str) -> BlastError:
        if self._file is None or self._saved is None:
            last = "no state was saved before it"
        else:
            last = f"the last good state is {self._file}, before step {self._saved}"
        return BlastError(f"{what}, and {last}; {self._remedy} and run again.")
