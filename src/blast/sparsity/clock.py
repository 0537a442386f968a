"""The step counter of a `Sparsifier`, and the steps at which masks change."""

from __future__ import annotations

from blast.sparsity.config import SparsifyConfig


class StepClock:
    """Counts the optimization steps of a `Sparsifier`; all of its parts read the step here.

    Args:
        config: Says when masks are updated and when they are fixed.

    Attributes:
        step_count: Steps done.
        finished: Whether the masks are fixed.
        postponed: Whether a mask update waits for finite gradients.
    """

    def __init__(self, config: SparsifyConfig) -> None:
        self._config = config
        self.step_count = 0
        self.finished = False
        self.postponed = False

    @property
    def last_update(self) -> bool:
        """Whether the coming step is the one that trims and fixes the masks, or is past it."""
        return self.step_count >= self._config.final_step

    @property
    def update_due(self) -> bool:
        """Whether the coming step updates the masks or fixes them."""
        since = self.step_count - self._config.first_step
        regular = since >= 0 and since % self._config.update_every == 0
        return not self.finished and (self.last_update or self.postponed or regular)

    @property
    def growth_due(self) -> bool:
        """Whether the coming step grows blocks."""
        return self.update_due and not self.last_update and self._config.grow != "none"

    @property
    def dense_gradient_due(self) -> bool:
        """Whether the coming step grows blocks by their gradient, so that it needs the dense gradient."""
        return self.growth_due and self._config.grows_by_gradient
