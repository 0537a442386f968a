"""What a training loop that replays its steps as CUDA graphs tells its sparsifier."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blast.errors import BlastError
from blast.sparsity.execution import Execution
from blast.sparsity.loop_checks import AccumulationCheck

if TYPE_CHECKING:
    from blast.sparsity.sparsifier import Sparsifier


class Replays:
    """`Sparsifier.replays`: counts steps whose work is replayed, and makes mask updates of them.

    Between updates `skip()` stands for `step()`. In the sparse state a replayed backward pass does for an update if its
    capture was told to `remember()`; after the replay `recall()` makes the gradients that blocks grow by, and `step()`
    updates the masks. New parameters come of that, so that the graphs have to be captured anew.

    Args:
        sparsifier: Whose.
        execution: Of it.
        accumulation: Of it.
    """

    def __init__(self, sparsifier: Sparsifier, execution: Execution, accumulation: AccumulationCheck) -> None:
        self._sparsifier, self._execution, self._accumulation = sparsifier, execution, accumulation

    def skip(self) -> None:
        """Count a step whose work on the device, that of `step()` and of the optimizer, was done as a replay of it.

        Raises:
            BlastError: if a mask update is due, which no replay can make.
        """
        ours = self._sparsifier
        if ours.update_due:
            raise BlastError(f"a mask update is due at step {ours.step_count}; call step() instead of skip().")
        ours.step_count += 1
        self._execution.watch(ours.step_count, ours.finished)
        self.optimized()

    def optimized(self) -> None:
        """Take note that the optimizer's work after a `step()` was done as a replay of it."""
        self._accumulation.after_optimizer()

    def remember(self, wanted: bool = True) -> None:
        """Have the coming backward pass, which is captured, keep what `recall` needs of it; or forget what was kept.

        Replays bring it up to date where it lies: the input of each sparse MLP and the gradient of its output. Their
        memory is not used again within the step.
        """
        self._execution.remember(wanted, self._sparsifier.finished)

    @property
    def can_recall(self) -> bool:
        """Whether a replay does for the backward pass of a mask update; masked-dense it always does."""
        return self._execution.can_recall

    def recall(self) -> None:
        """After such a replay, and before `step()`: make the gradients that blocks grow by."""
        self._execution.recall()
