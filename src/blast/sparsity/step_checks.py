"""The checks of a sparsifier before and after each of its steps, and around those of the optimizer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from blast.sparsity.clock import StepClock
from blast.sparsity.mask_groups import MaskGroup
from blast.sparsity.optimizers import Optimizers, check_state
from blast.sparsity.usage_checks import AccumulationCheck, FiniteCheck, ReplacementCheck

# Steps that check the optimizer state after it was made or loaded: an optimizer makes it in its first step.
CHECKED_STEPS = 2


class StepChecks:
    """The checks of one sparsifier, in the order of a step.

    Args:
        model: The model.
        mask_groups: Its mask groups.
        optimizers: Its optimizers.
        clock: The clock of the sparsifier.

    Attributes:
        finite: The check of finite gradients.
        accumulation: The check of gradient accumulation.

    Raises:
        BlastError: if the optimizer's state cannot be cleared by blocks.
    """

    def __init__(
        self, model: nn.Module, mask_groups: Sequence[MaskGroup], optimizers: Optimizers, clock: StepClock
    ) -> None:
        self.finite, self.accumulation = FiniteCheck(), AccumulationCheck()
        self._replacement = ReplacementCheck(model, mask_groups)
        self._mask_groups, self._optimizers, self._clock = mask_groups, optimizers, clock
        self._states_left = CHECKED_STEPS
        check_state(optimizers, mask_groups, sparse=False)

    def before_step(self, sparse: bool) -> None:
        """Call it at the begin of a step.

        Args:
            sparse: Whether the model is in the sparse state.

        Raises:
            BlastError: if a matrix was replaced, or the optimizer's state cannot be cleared by blocks.
        """
        self._replacement.check()
        self.finite.new_step()
        if self._clock.update_due or self._states_left:
            check_state(self._optimizers, self._mask_groups, sparse)
            self._states_left = max(0, self._states_left - 1)

    def before_update(self) -> None:
        """Call it before a mask update.

        Raises:
            BlastError: if the gradients still accumulate over micro-batches, or are used up.
        """
        # While an update waits, skipped steps look like accumulation.
        if not self._clock.postponed:
            self.accumulation.before_update(self._mask_groups, self._clock.step_count)

    def live_gradients_are_finite(self) -> bool:
        """Whether the gradients that the optimizer sees are finite; it waits for the GPU."""
        gradients = [p.grad for group in self._mask_groups for p in group.parameters if p.grad is not None]
        return all(bool(gradient.isfinite().all()) for gradient in gradients)

    def after_step(self) -> None:
        """Call it at the end of a step."""
        self.accumulation.after_step(self._mask_groups)

    def before_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Call it before each optimizer step.

        Raises:
            BlastError: if the optimizer would use a gradient that is not finite.
        """
        # A gradient scaler hands `found_inf` to a fused optimizer, which then skips the step by itself.
        self.finite.before_optimizer(scaled=getattr(optimizer, "found_inf", None) is not None)

    def after_optimizer(self) -> None:
        """Call it after each optimizer step."""
        if not self._clock.finished:
            self.accumulation.after_optimizer(self._mask_groups)

    def after_load(self) -> None:
        """Call it after an optimizer state was loaded.

        Raises:
            BlastError: if it holds dense moments for live blocks, or the other way round.
        """
        self._optimizers.check_loaded(self._mask_groups)
        self._states_left = CHECKED_STEPS
