"""The divergence check: stops a training whose loss is not finite, or stays far above its usual value.

`lost_what_it_learned` judges a training by its curve when it is over.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from blast.errors import BlastError

WINDOW = 50
PATIENCE = 10
# Spikes that are told one by one; a run with more of them would fill its log.
TOLD = 5
# A model that keeps less than this share of its best margin below the loss of guessing has lost what it had learned.
KEPT = 0.5
REMEDY = "lower 'learning_rate' or 'clip' under 'training' in the config"


class DivergenceCheck:
    """Checks the loss and the gradient norm of each step.

    A spike is a loss more than `spike` nats above the median of the last 50 losses that were no spikes. In the first
    steps, when there are fewer, and at any time after, a loss is a spike too if it is more than `spike` nats above the
    first loss and above that of guessing. One bad batch is no divergence, but 10 spikes in a row are.

    Args:
        spike: Nats above the median; 0 checks for NaN and infinity only.
        state_file: File of the training state, for the error message.
        remedy: What the error tells the user to do.
        guessing: Loss of guessing among all tokens or classes, nats; None if unknown.
        started_at: Loss of the first step of a resumed run; None takes the first one that is checked.
        say: Prints a line about a spike and about its end.
    """

    def __init__(
        self,
        spike: float,
        state_file: Path | None = None,
        remedy: str = REMEDY,
        guessing: float | None = None,
        started_at: float | None = None,
        say: Callable[[str], Any] = lambda line: None,
    ) -> None:
        self._spike, self._file, self._remedy = spike, state_file, remedy
        self._guessing, self._say = guessing, say
        self._usual: deque[float] = deque(maxlen=WINDOW)
        self._highest = started_at if started_at is None else max(started_at, guessing or started_at)
        self._spikes = self._told = 0
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
        if self._highest is None:
            self._highest = max(loss, self._guessing or loss)
        limit = self._highest + self._spike
        if len(self._usual) == WINDOW:
            limit = min(limit, statistics.median(self._usual) + self._spike)
        if self._spike and loss > limit:
            self._spike_at(step, loss)
            return
        if self._spikes and self._told <= TOLD:
            count = f"{self._spikes} step{'s' if self._spikes > 1 else ''}"
            self._say(f"the loss is {loss:.3g} nats at step {step} again, after {count} above {limit:.3g}")
        self._usual.append(loss)
        self._spikes = 0

    def _spike_at(self, step: int, loss: float) -> None:
        usual = statistics.median(self._usual) if self._usual else self._highest
        self._spikes += 1
        if self._spikes == PATIENCE:
            first = step - PATIENCE + 1
            before = f"after {usual:.3g} before step {first}"
            if self._guessing is not None and loss > self._guessing:
                before += f" and above the {self._guessing:.3g} of guessing"
            raise self._error(f"the loss is {loss:.3g} nats at step {step}, {before}")
        if self._spikes == 1:
            self._told += 1
            if self._told <= TOLD:
                last = "; later spikes are not told" if self._told == TOLD else ""
                self._say(
                    f"SPIKE: the loss is {loss:.3g} nats at step {step}, after {usual:.3g}; {PATIENCE} such steps in a "
                    f"row stop the run{last}"
                )

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


def lost_what_it_learned(steps: Sequence[float], losses: Sequence[float], guessing: float | None) -> str | None:
    """Says of a training by its curve whether it learned nothing, or lost more than half of what it had learned.

    What a model has learned is its margin: the loss of guessing minus its own.

    Args:
        steps: Steps of the curve of the loss on held-out data.
        losses: The losses at these steps, nats.
        guessing: Loss of guessing among all tokens or classes, nats; None tells nothing but NaN and infinity.

    Returns:
        One sentence without a remedy; None for a training that went well, or that has no curve.

    Example:
        >>> lost_what_it_learned([100, 200], [3.1, 2.9], guessing=10.8) is None
        True
        >>> lost_what_it_learned([100, 200], [3.0, 8.0], guessing=10.8)
        'the loss on held-out data rose from 3.00 nats at step 100 to 8.00 at step 200 and did not come back'
    """
    known = [(step, loss) for step, loss in zip(steps, losses, strict=True) if not math.isnan(loss)]
    if not known:
        return None
    (step, last), (best, lowest) = known[-1], min(known, key=lambda entry: entry[1])
    if math.isinf(last):
        return f"the loss on held-out data is {last} at step {step:g}"
    if guessing is None:
        return None
    if last >= guessing:
        rose = f", after {lowest:.2f} at step {best:g}" if lowest < guessing else ""
        return (
            f"the loss on held-out data is {last:.2f} nats at step {step:g}{rose}, no better than the {guessing:.2f} "
            "of guessing"
        )
    if guessing - last < KEPT * (guessing - lowest):
        return (
            f"the loss on held-out data rose from {lowest:.2f} nats at step {best:g} to {last:.2f} at step {step:g} "
            "and did not come back"
        )
    return None
