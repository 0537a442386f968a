"""When a model in training runs masked-dense and when sparse, and when its dense gradient is watched."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from blast.errors import BlastError
from blast.layers.training_mlp import TrainingMlp
from blast.sparsity.clock import StepClock
from blast.sparsity.config import SparsifyConfig
from blast.sparsity.execution import sparse
from blast.sparsity.execution.break_even import NEVER, training_break_even
from blast.sparsity.execution.optimizer_state import check_optimizer
from blast.sparsity.mask_groups import Unit


class Execution:
    """How a model runs now: `state` is `masked` or `sparse`.

    Args:
        model: The model, not wrapped.
        optimizer: Over its parameters.
        units: Its matrices.
        config: Of it: `execution`, `break_even`, and what says whether masks grow.
        clock: Says when masks are updated.
        keeper: What holds the model's parameters, so that none may be replaced (`DistributedDataParallel`,
            `fully_shard`); None if nothing does.

    Raises:
        BlastError: if sparse execution is asked for and the wrapper or the optimizer does not allow it.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        units: Sequence[Unit],
        config: SparsifyConfig,
        clock: StepClock,
        keeper: str | None,
    ) -> None:
        self.state = "masked"
        self._accumulating = False
        self._model, self._optimizer, self._units, self._config = model, optimizer, units, config
        self._clock, self._keeper = clock, keeper
        # Those that run as one in the sparse state.
        self._mlps: list[TrainingMlp] = []
        self._break_even = self._choose()

    def settle(self, masks: Sequence[Tensor], achieved: float) -> None:
        """Switches to sparse if it is time.

        Args:
            masks: Of each unit.
            achieved: Their sparsity.

        Raises:
            BlastError: if the optimizer cannot take the parameters and `execution` is `sparse`; with `auto` that is a
                warning.
        """
        if self.state == "masked" and achieved >= self._break_even and achieved > 0:
            try:
                self.enter(masks)
            except BlastError as error:
                if self._config.execution == "sparse":
                    raise
                warnings.warn(f"training stays masked-dense: {error}", stacklevel=4)
                self._break_even = NEVER

    def enter(self, masks: Sequence[Tensor]) -> None:
        """From masked to sparse; arguments as for `settle`."""
        if self.state == "masked":
            self._check_free()
            self._mlps = sparse.enter(self._model, self._optimizer, self._units, masks)
            fixed = self._config.grow == "none" and self._config.schedule == "constant"
            sparse.settle(self._units, self._clock.finished or fixed)
            self.state = "sparse"

    def leave(self) -> None:
        """From sparse to masked."""
        if self.state == "sparse":
            sparse.detach_dense_gradients(self._units)
            sparse.leave(self._model, self._optimizer, self._units)
            self._mlps, self.state = [], "masked"

    def repack(self, masks: Sequence[Tensor]) -> None:
        """Takes new masks in the sparse state."""
        sparse.repack(self._mlps, self._optimizer, self._units, masks)

    def accumulate_if_due(self) -> None:
        """Accumulates dense gradients in the coming step if it grows blocks; stops it otherwise."""
        if self.state == "masked":
            return
        if self._clock.growth_due:
            sparse.attach_dense_gradients(self._units)
            self._accumulating = True
        elif self._accumulating:
            sparse.detach_dense_gradients(self._units)
            self._accumulating = False

    def retain_activations(self, wanted: bool) -> None:
        """Retains the activations of the next backward pass if masks still grow; False frees them."""
        if self.state == "sparse":
            sparse.retain_activations(self._mlps, wanted and not self._clock.finished and self._config.grow != "none")

    @property
    def can_recompute(self) -> bool:
        """Whether the dense gradients of a mask update follow from the retained activations."""
        return self.state == "masked" or sparse.can_recompute(self._mlps, self._units)

    def recompute_dense_gradients(self) -> None:
        """Computes the dense gradients from the retained activations."""
        if self.state == "sparse":
            sparse.recompute_dense_gradients(self._mlps)

    def before_update(self) -> None:
        """Averages the dense gradients over all processes, and checks them."""
        if self.state == "sparse":
            sparse.finish_gradients(self._units, self._clock.step_count)

    def _check_free(self) -> None:
        if self._keeper is not None:
            raise BlastError(
                f'execution="sparse" replaces parameters, which {self._keeper} does not allow; '
                'give the model itself and call blast.average_gradients(model), or set execution="masked".'
            )

    def _choose(self) -> float:
        config = self._config
        if config.execution == "masked" or (config.execution == "auto" and self._keeper is not None):
            return NEVER
        if config.execution == "sparse":
            self._check_free()
            check_optimizer(self._optimizer, [])
        if config.break_even is not None:
            return config.break_even
        if config.execution == "sparse":
            return 0.0
        if not self._runs_by_operator():
            return NEVER
        gated = {target.mlp for unit in self._units for target in unit.targets if target.role == "gate"}
        limits = []
        for unit in self._units:
            for target in unit.targets:
                gate = "none" if target.mlp not in gated else "tied" if config.tie_gate_up else "untied"
                shape = (max(unit.shape), min(unit.shape))
                limits.append(training_break_even(unit.device, unit.block, gate, shape))
        return max(limits)

    def _runs_by_operator(self) -> bool:
        """Whether every matrix is one of an MLP that trains in one call: layer by layer is not always faster."""
        for target in (target for unit in self._units for target in unit.targets):
            if target.mlp is None or target.name.rpartition(".")[0] != target.mlp:
                return False
            children = self._model.get_submodule(target.mlp).children()
            if any(isinstance(child, nn.Dropout) and child.p > 0 for child in children):
                return False
        return True
