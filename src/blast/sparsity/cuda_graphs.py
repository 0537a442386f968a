"""The part of a sparsifier that a training loop needs if it replays its steps as CUDA graphs."""

from __future__ import annotations

from blast.errors import BlastError
from blast.sparsity.clock import StepClock
from blast.sparsity.execution.switch import Execution
from blast.sparsity.regrown_state import RegrownState
from blast.sparsity.step_checks import StepChecks


class CudaGraphSupport:
    """`Sparsifier.cuda_graphs`: counts replayed steps, and updates masks after a replayed backward pass.

    Between mask updates, call `count_replayed_step()` after each replay in the place of `step()`. For a mask update in
    the sparse state:

    1. before the capture, call `retain_activations()`;
    2. after the replay of the backward pass, call `recompute_dense_gradients()`, then `step()`;
    3. capture new graphs, because the update replaced parameters.

    Also in the masked-dense state capture new graphs after an update, unless `keeps_graphs`.

    Args:
        clock: The clock of the sparsifier.
        execution: Its execution state.
        checks: Its checks around each step.
        regrown: Its warm regrown state, if it has one.
    """

    def __init__(
        self, clock: StepClock, execution: Execution, checks: StepChecks, regrown: RegrownState | None
    ) -> None:
        self._clock, self._execution, self._checks, self._regrown = clock, execution, checks, regrown

    @property
    def keeps_graphs(self) -> bool:
        """Whether captured graphs stay valid over a mask update in the present execution state.

        Not in the sparse state, where an update replaces parameters. Not with `regrown_state="warm"`, because graphs
        that were captured before the growth do not hold its corrections.
        """
        return self._execution.state == "masked" and self._regrown is None

    def count_replayed_step(self) -> None:
        """Counts a step that was replayed whole, the work of `step()` and of the optimizer included.

        Raises:
            BlastError: if a mask update is due; a replay cannot update masks.
        """
        if self._clock.update_due:
            step = self._clock.step_count
            raise BlastError(f"a mask update is due at step {step}; call step() instead of count_replayed_step().")
        self._clock.step_count += 1
        self._execution.accumulate_if_due()
        self.optimizer_replayed()

    def optimizer_replayed(self) -> None:
        """Notes that the optimizer step after `step()` was replayed. A replay calls no hooks of the optimizer.

        Raises:
            BlastError: if the gradient of this step was not finite when a mask update was due.
        """
        self._checks.finite.before_optimizer()
        self._checks.accumulation.after_optimizer()
        if self._regrown is not None:
            self._regrown.optimizer_replayed()

    def retain_activations(self, wanted: bool = True) -> None:
        """Retains what `recompute_dense_gradients` needs of the next backward pass, or frees it.

        That is the input of each sparse MLP and the gradient of its output. Each replay overwrites these tensors in
        place. Their memory is not reused within the step.

        Args:
            wanted: Whether to retain; False frees what was retained.
        """
        self._execution.retain_activations(wanted)

    @property
    def can_recompute(self) -> bool:
        """Whether a replayed backward pass is enough for a mask update; always true in the masked-dense state."""
        return self._execution.can_recompute

    def recompute_dense_gradients(self) -> None:
        """Computes the dense gradients from the retained activations; call it after the replay, before `step()`."""
        self._execution.recompute_dense_gradients()
