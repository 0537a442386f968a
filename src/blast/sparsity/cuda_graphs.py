"""What a training loop that replays its steps as CUDA graphs tells its sparsifier."""

from __future__ import annotations

from blast.errors import BlastError
from blast.sparsity.clock import StepClock
from blast.sparsity.execution.switch import Execution
from blast.sparsity.usage_checks import AccumulationCheck


class Replays:
    """`Sparsifier.replays`: counts steps whose work is replayed, and makes mask updates of them.

    Between updates `skip()` stands for `step()`. In the sparse state a replayed backward pass does for an update if its
    capture was told to `remember()`; after the replay `recall()` makes the gradients that blocks grow by, and `step()`
    updates the masks. New parameters come of that, so that the graphs have to be captured anew.

    Args:
        clock: Of the sparsifier.
        execution: Of it.
        accumulation: Of it.
    """

    def __init__(self, clock: StepClock, execution: Execution, accumulation: AccumulationCheck) -> None:
        self._clock, self._execution, self._accumulation = clock, execution, accumulation

    def skip(self) -> None:
        """Count a step whose work on the device, that of `step()` and of the optimizer, was done as a replay of it.

        Raises:
            BlastError: if a mask update is due, which no replay can make.
        """
        if self._clock.update_due:
            step = self._clock.step_count
            raise BlastError(f"a mask update is due at step {step}; call step() instead of skip().")
        self._clock.step_count += 1
        self._execution.watch()
        self.optimized()

    def optimized(self) -> None:
        """Take note that the optimizer's work after a `step()` was done as a replay of it."""
        self._accumulation.after_optimizer()

    def remember(self, wanted: bool = True) -> None:
        """Have the coming backward pass, which is captured, keep what `recall` needs of it; or forget what was kept.

        Replays bring it up to date where it lies: the input of each sparse MLP and the gradient of its output. Their
        memory is not used again within the step.
        """
        self._execution.remember(wanted)

    @property
    def can_recall(self) -> bool:
        """Whether a replay does for the backward pass of a mask update; masked-dense it always does."""
        return self._execution.can_recall

    def recall(self) -> None:
        """After such a replay, and before `step()`: make the gradients that blocks grow by."""
        self._execution.recall()
