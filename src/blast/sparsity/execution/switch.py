"""Decides when a model in training runs masked-dense and when sparse, and when it accumulates dense gradients."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import Tensor, nn

from blast.errors import BlastError
from blast.layers.training_mlp import TrainingMlp
from blast.model.target import Target
from blast.sparsity.clock import StepClock
from blast.sparsity.config import SparsifyConfig
from blast.sparsity.execution import sparse
from blast.sparsity.execution.break_even import NEVER, training_break_even
from blast.sparsity.execution.optimizer_state import check_elementwise
from blast.sparsity.mask_groups import MaskGroup
from blast.sparsity.optimizers import Optimizers


class Execution:
    """The execution state of a model.

    Args:
        model: The model, not wrapped.
        optimizers: The optimizers over its parameters.
        mask_groups: Its mask groups.
        config: `execution`, `break_even`, `grow`, `schedule` and `tie_gate_up` are used.
        clock: The clock of the sparsifier.
        wrapper: Name of the wrapper that does not allow new parameters (`DistributedDataParallel`, `fully_shard`);
            None without one.

    Attributes:
        state: `masked` or `sparse`.

    Raises:
        BlastError: if `execution` is `sparse` and the wrapper, the optimizer or experts do not allow it.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Optimizers,
        mask_groups: Sequence[MaskGroup],
        config: SparsifyConfig,
        clock: StepClock,
        wrapper: str | None,
    ) -> None:
        self.state = "masked"
        self._accumulating = False
        self._model, self._optimizers, self._mask_groups, self._config = model, optimizers, mask_groups, config
        self._clock, self._wrapper = clock, wrapper
        # The MLPs that run as one operator in the sparse state.
        self._mlps: list[TrainingMlp] = []
        self._break_even = self._find_break_even()

    def switch_if_due(self, masks: Sequence[Tensor], achieved: float) -> None:
        """Switches to sparse if the sparsity has reached the break-even.

        Args:
            masks: For each mask group, bool `[rows, cols]` on the CPU.
            achieved: Their sparsity.

        Raises:
            BlastError: if the optimizer cannot train live blocks only and `execution` is `sparse`. With `auto` this is
                a warning.
        """
        if self.state == "masked" and achieved >= self._break_even and achieved > 0:
            try:
                self.to_sparse(masks)
            except BlastError as error:
                if self._config.execution == "sparse":
                    raise
                warnings.warn(f"training stays masked-dense: {error}", stacklevel=4)
                self._break_even = NEVER

    def to_sparse(self, masks: Sequence[Tensor]) -> None:
        """Switches from masked to sparse; `masks` as for `switch_if_due`."""
        if self.state == "masked":
            self._check_wrapper()
            self._check_experts()
            self._mlps = sparse.switch_to_sparse(self._model, self._optimizers, self._mask_groups, masks)
            fixed = self._config.grow == "none" and self._config.schedule == "constant"
            sparse.set_masks_fixed(self._mask_groups, self._clock.finished or fixed)
            self.state = "sparse"

    def to_masked(self) -> None:
        """Switches from sparse to masked."""
        if self.state == "sparse":
            sparse.detach_dense_gradients(self._mask_groups)
            sparse.switch_to_masked(self._model, self._optimizers, self._mask_groups)
            self._mlps, self.state = [], "masked"

    def change_layout(self, masks: Sequence[Tensor]) -> None:
        """Changes the masks of a model in the sparse state."""
        sparse.change_layout(self._mlps, self._optimizers, self._mask_groups, masks)

    def accumulate_if_due(self) -> None:
        """Accumulates dense gradients in the coming step if it grows blocks by them; stops it otherwise."""
        if self.state == "masked":
            return
        if self._clock.dense_gradient_due:
            sparse.attach_dense_gradients(self._mask_groups)
            self._accumulating = True
        elif self._accumulating:
            sparse.detach_dense_gradients(self._mask_groups)
            self._accumulating = False

    def discard_dense_gradients(self) -> None:
        """Frees the dense gradients of this step, for an update that is postponed."""
        if self.state == "sparse":
            sparse.detach_dense_gradients(self._mask_groups)

    def retain_activations(self, wanted: bool) -> None:
        """Retains the activations of the next backward pass if blocks still grow by gradient; False frees them."""
        if self.state == "sparse":
            growing = not self._clock.finished and self._config.grows_by_gradient
            sparse.retain_activations(self._mlps, wanted and growing)

    @property
    def can_recompute(self) -> bool:
        """Whether the dense gradients of a mask update follow from the retained activations."""
        return self.state == "masked" or sparse.can_recompute(self._mlps, self._mask_groups)

    def recompute_dense_gradients(self) -> None:
        """Computes the dense gradients from the retained activations."""
        if self.state == "sparse":
            sparse.recompute_dense_gradients(self._mlps)

    def before_update(self) -> None:
        """Averages the dense gradients over all processes, and checks them."""
        if self.state == "sparse":
            sparse.reduce_dense_gradients(self._mask_groups, self._clock.step_count)

    def _check_wrapper(self) -> None:
        if self._wrapper is not None:
            raise BlastError(
                f'execution="sparse" replaces parameters, which {self._wrapper} does not allow; '
                'pass the model itself and call blast.average_gradients(model), or set execution="masked".'
            )

    def _check_experts(self) -> None:
        experts = self._first_expert()
        if experts is not None:
            raise BlastError(
                f"the experts of '{experts.mlp}' cannot train in the sparse state, because all of them are one "
                'parameter; set execution="masked", and call blast.to_sparse(model, masks) after the training.'
            )

    def _first_expert(self) -> Target | None:
        targets = (target for group in self._mask_groups for target in group.targets)
        return next((target for target in targets if target.expert is not None), None)

    def _find_break_even(self) -> float:
        config, experts = self._config, self._first_expert()
        automatic = config.execution == "auto" and (self._wrapper is not None or experts is not None)
        if automatic and experts is not None and config.break_even is not None:
            told = f"training stays masked-dense at any sparsity, because '{experts.mlp}' has experts"
            warnings.warn(f"{told}; leave break_even out.", stacklevel=4)
        if config.execution == "masked" or automatic:
            return NEVER
        if config.execution == "sparse":
            self._check_wrapper()
            self._check_experts()
            check_elementwise(self._optimizers, [])
        if config.break_even is not None:
            return config.break_even
        if config.execution == "sparse":
            return 0.0
        if not self._all_in_training_mlps():
            return NEVER
        gated = {target.mlp for group in self._mask_groups for target in group.targets if target.role == "gate"}
        limits = []
        for group in self._mask_groups:
            for target in group.targets:
                gate = "none" if target.mlp not in gated else "tied" if config.tie_gate_up else "untied"
                shape = (max(group.shape), min(group.shape))
                limits.append(training_break_even(group.device, group.block, gate, shape))
        return max(limits)

    def _all_in_training_mlps(self) -> bool:
        """Whether every matrix is in an MLP that trains as one operator; other layers may be slower than dense."""
        for target in (target for group in self._mask_groups for target in group.targets):
            if target.mlp is None or target.name.rpartition(".")[0] != target.mlp:
                return False
            children = self._model.get_submodule(target.mlp).children()
            if any(isinstance(child, nn.Dropout) and child.p > 0 for child in children):
                return False
        return True
