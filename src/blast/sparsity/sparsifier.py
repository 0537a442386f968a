"""`Sparsifier`, the one object that a training loop needs: call `sparsifier.step()` after each `backward()`.

This is our reading of the method ("iteratively sparsifies weight matrices into a block sparsity pattern"). Zhu &
Gupta's cubic schedule decides how many blocks are empty. RigL's drop and grow decide which blocks.

Training starts masked-dense: the model keeps its own modules, and dead blocks are exact zeros. Its forward pass is then
the masked forward pass, and its dense gradient is there to grow blocks by. At the break-even sparsity
(`SparsifyConfig.execution`) training switches to the sparse state, which holds live blocks only.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from blast.block_sparse.sharding import is_sharded, sharded_modules
from blast.distributed import world_size
from blast.errors import BlastError, check_argument
from blast.model.coverage import dense_mlp_weights
from blast.sparsity.clock import StepClock
from blast.sparsity.config import SparsifyConfig
from blast.sparsity.cuda_graphs import CudaGraphSupport
from blast.sparsity.dead_blocks import DeadBlocks
from blast.sparsity.device_masks import DeviceMasks
from blast.sparsity.execution.switch import Execution
from blast.sparsity.learning_rate import DensityScaledRates
from blast.sparsity.mask_groups import find_mask_groups, parameter_of
from blast.sparsity.mask_update import MaskUpdate
from blast.sparsity.one_shot import full_mask, prune_to_budget
from blast.sparsity.optimizers import Optimizers, held_by
from blast.sparsity.ownership import Ownership
from blast.sparsity.regrown_state import RegrownState
from blast.sparsity.saved_state import REGROWN, STATE_FORMAT, check_saved_state
from blast.sparsity.schedule import target_sparsity
from blast.sparsity.scores import NonFiniteGradientError
from blast.sparsity.selection import live_cost
from blast.sparsity.starved import warn_of_starved
from blast.sparsity.step_checks import StepChecks


class Sparsifier:
    """Makes a model block-sparse while it trains.

    ```python
    sparsifier = Sparsifier(model, optimizer, SparsifyConfig(sparsity=0.95, block=64, steps=10_000))
    for batch in batches:
        loss(model, batch).backward()
        sparsifier.step()  # before clipping and the optimizer
        optimizer.step()
        optimizer.zero_grad()
    sparsifier.finish()
    ```

    After every optimizer step the weights of dead blocks are exactly zero, with any optimizer. If the schedule starts
    at a sparsity above zero, the first mask is applied here.

    To resume a run: create the `Sparsifier`, load its state, then load the states of the model and the optimizer. Where
    a framework loads the latter two first (in their masked-dense form), pass the state as `state` instead.

    A mask update needs gradients. A matrix without one (a layer that was left out, an expert without a token) keeps its
    mask; later updates make up for it, and the last one needs weights only. Under a gradient scaler an update waits for
    finite gradients. If the optimizer would use gradients that are not finite, its step raises.

    In the sparse state (see `execution`) the pruned matrices are `BlockLinear` modules. A mask update replaces their
    parameters, in the optimizer too. Read `model.parameters()` anew where you need them, for instance to clip.

    With several processes, all of them choose the same masks. The sparse state needs
    `blast.average_gradients(model)`; `DistributedDataParallel` and `fully_shard` stay masked-dense.

    Under `torch.compile` the sparse MLPs run outside the compiled graphs until the masks are fixed. Mask updates cause
    no recompilation.

    Args:
        model: Any model; after `fully_shard` if you use it. Its matrices are found by structure (see
            `blast.find_mlps`).
        optimizer: The optimizer over its parameters; a list if several train its matrices. Optimizers that
            `accelerator.prepare` returned are accepted. Between two micro-batches of `accelerator.accumulate`, `step()`
            does nothing, as their own `step()`.
        config: What to prune, how far, and how fast.
        state: A result of `state_dict`, if the model and the optimizer have loaded theirs already.

    Attributes:
        model: The model, without its wrapper.
        optimizer: The optimizer, or the list, as given.
        config: The config.
        sparsity_target: Target sparsity at the last mask update.
        dense_targets: Names of targets that stay dense (`dense_first`, `dense_last`).
        cuda_graphs: For a training loop that replays its steps as CUDA graphs.

    Raises:
        BlastError: if a target matches nothing or is sparse already, a block does not divide a matrix, not exactly one
            optimizer holds a matrix, or the optimizer's state cannot be cleared by blocks; with `execution="sparse"`
            also if the optimizer or a wrapper does not allow it.

    Example:
        >>> sparsifier = blast.Sparsifier(model, optimizer, blast.SparsifyConfig(sparsity=0.5, block=16, steps=100))
        >>> model(torch.arange(8)[None]).logits.sum().backward()
        >>> sparsifier.step()  # before clipping and optimizer.step()
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        config: SparsifyConfig,
        *,
        state: dict[str, Any] | None = None,
    ) -> None:
        check_argument("the model", model, nn.Module, "a torch.nn.Module")
        check_argument("the config", config, SparsifyConfig, "a SparsifyConfig, or SparsifyConfig.from_dict(settings)")
        if config.calibrated:
            raise BlastError(
                f"the keep score '{config.keep_score}' needs a calibration, which only one-shot pruning makes; "
                "take 'magnitude' or 'second_moment'."
            )
        if config.permute_hidden:
            raise BlastError(
                "permute_hidden reorders a trained model before one-shot pruning, and a Sparsifier prunes while "
                "training; leave it out."
            )
        # The wrappers of torch.compile and of data-parallel training put a prefix before every name.
        model = getattr(model, "_orig_mod", model)
        wrapper = None
        if isinstance(model, nn.parallel.DistributedDataParallel):
            wrapper, model = "DistributedDataParallel", model.module
        self._sharded = sharded_modules(model)
        self._reshard()
        if any(is_sharded(parameter) for parameter in model.parameters()):
            wrapper = "fully_shard"
        self.model = model
        self.optimizer = optimizer
        self.config = config
        self._optimizers = Optimizers(optimizer)
        self._mask_groups, dense = find_mask_groups(model, config)
        self._optimizers.check_matrices(self._mask_groups)
        self._clock, self._rates = StepClock(config), DensityScaledRates(config.lr_density_power)
        self._checks = StepChecks(model, self._mask_groups, self._optimizers, self._clock)
        self._update = MaskUpdate(self._mask_groups, config, self._optimizers)
        warm = config.regrown_state == "warm"
        self._regrown = RegrownState(self._mask_groups, self._optimizers, config) if warm else None
        # Whether an optimizer state was loaded since the last step.
        self._loaded = False
        self.dense_targets = [target.name for target in dense]
        pruned = [target for group in self._mask_groups for target in group.matrices]
        self._dense_mlp_weights = dense_mlp_weights(model, pruned)._asdict()
        self.sparsity_target = target_sparsity(config, 0)
        # Masks are chosen and kept on the CPU. Copies on the devices clear the matrices.
        self._device_masks, self._dead_blocks = DeviceMasks(self._mask_groups), DeadBlocks(self._mask_groups)
        self._set_masks([full_mask(group) for group in self._mask_groups])
        if state is not None:
            self._load_masks(state)
        elif self.sparsity_target > 0:
            self._set_masks(prune_to_budget(self._mask_groups, self._masks, config, self.sparsity_target, step=0))
            warn_of_starved(self._mask_groups, self._masks, config, self.sparsity_target)
        self._execution = Execution(model, self._optimizers, self._mask_groups, config, self._clock, wrapper)
        self.cuda_graphs = CudaGraphSupport(self._clock, self._execution, self._checks, self._regrown)
        if config.lr_density_power:
            self._rates.groups = self._optimizers.split_groups({id(parameter_of(target)) for target in pruned})
        # From here on nothing is refused.
        hooks = self._optimizers.register_hooks(self._before_optimizer, self._after_optimizer, self._after_load)
        self._ownership = Ownership(self._mask_groups, hooks)
        self._clear_weights()
        if state is None:
            self._execution.switch_if_due(self._masks, self.sparsity_achieved)
        elif state["execution"] == "sparse":
            self._execution.to_sparse(self._masks)
        self._execution.accumulate_if_due()

    @property
    def masks(self) -> dict[str, Tensor]:
        """Copies of the masks by module name, bool `[out / b_out, in / b_in]`, true where a block is live.

        Modules that share a mask share the tensor.
        """
        return self._by_name(self._device_masks.live())

    @property
    def step_count(self) -> int:
        """Optimization steps done."""
        return self._clock.step_count

    @property
    def finished(self) -> bool:
        """Whether the masks are fixed, at the exact final budget, for the rest of the training."""
        return self._clock.finished

    @property
    def execution(self) -> str:
        """How the model runs now: `masked` or `sparse`."""
        return self._execution.state

    @property
    def sparsity_achieved(self) -> float:
        """Share of empty blocks in all pruned matrices; with `grow="union"` below the target until the last update."""
        costs = [group.cost for group in self._mask_groups]
        total = sum(group.blocks * group.cost for group in self._mask_groups)
        return 1 - live_cost(self._masks, costs) / total

    @property
    def update_due(self) -> bool:
        """Whether the coming `step()` updates or fixes the masks; the execution changes in such steps only."""
        return self._clock.update_due

    def step(self) -> None:
        """Updates the masks if that is due, then clears gradients, optimizer state and weights of dead blocks.

        Call it once in each optimization step, after `backward()`, before clipping and `optimizer.step()`.

        Raises:
            BlastError: at a mask update, if no matrix has a gradient, a weight is NaN or infinite, or the gradients
                still accumulate over micro-batches or are used up; at any step, if a matrix was replaced, a newer
                `Sparsifier` prunes it, or the optimizer's state cannot be cleared by blocks.
        """
        if self._optimizers.accumulating:
            return
        self._ownership.check()
        self._reshard()
        self._checks.before_step(sparse=self.execution == "sparse")
        due = self.update_due
        if self._loaded:
            self._clear_state()
            self._loaded = False
        if due:
            self._checks.before_update()
            self._execution.before_update()
            if self._clock.growth_due and not self.config.grows_by_gradient and self.execution == "masked":
                # As in the sparse state, a block that grows at random has no gradient in this step.
                self._dead_blocks.clear_gradients()
            if self._clock.last_update:
                self._trim()
            else:
                self._update_or_postpone()
        self._clear_dead()
        self._clock.step_count += 1
        if due:
            self._execution.switch_if_due(self._masks, self.sparsity_achieved)
        self._execution.accumulate_if_due()
        self._checks.after_step()

    def finish(self) -> None:
        """Trims the masks to the exact final budget and fixes them, unless the schedule has done so."""
        self._ownership.check()
        if not self.finished:
            self._reshard()
            self._trim()
            self._clear_dead()
            self._execution.switch_if_due(self._masks, self.sparsity_achieved)

    def to_sparse(self) -> None:
        """Switches to the sparse state. Call it between two steps, not after `backward()`.

        Raises:
            BlastError: if the optimizer cannot train live blocks only. Nothing is changed then.
        """
        self._ownership.check()
        self._execution.to_sparse(self._masks)
        self._execution.accumulate_if_due()

    def to_masked(self) -> None:
        """Switches to the masked-dense state. Above the break-even the next mask update switches back."""
        self._execution.to_masked()

    def report(self) -> dict[str, Any]:
        """The sparsity of the model and of each matrix, as plain JSON values.

        Returns:
            `target` and `achieved` sparsity of all pruned matrices; `matrices`, by name, with `role`, `shape` (out,
            in), `block`, `blocks`, `live`, `target`, `achieved`; `dense`, the names of targets that stay dense; and
            `dense_mlp_weights`, the `names` of all MLP weights that stay dense and their `share` of the MLP weights.
        """
        matrices: dict[str, Any] = {}
        for group in self._mask_groups:
            matrices |= group.report(live_cost([self._masks[group.index]], [1]), self.sparsity_target)
        whole = {"target": self.sparsity_target, "achieved": self.sparsity_achieved}
        dense = {"dense": list(self.dense_targets), "dense_mlp_weights": copy.deepcopy(self._dense_mlp_weights)}
        return {**whole, "matrices": matrices, **dense}

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs besides model and optimizer, as plain values and tensors."""
        return {
            "format": STATE_FORMAT,
            "config": self.config.to_dict(),
            "step_count": self.step_count,
            "finished": self.finished,
            "postponed": self._clock.postponed,
            "execution": self.execution,
            "world_size": world_size(),
            "sparsity_target": self.sparsity_target,
            "masks": {name: mask.clone() for name, mask in self._by_name(self._masks).items()},
            **({} if self._regrown is None else {REGROWN: self._regrown.state_dict()}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Loads a saved state. Load the states of the model and of the optimizer after it.

        The order matters: this state decides whether the other two hold dense matrices or live blocks.

        Args:
            state: A result of `state_dict`.

        Raises:
            BlastError: if the state has another config, number of processes, or set of matrices.
        """
        self._ownership.check()
        self._load_masks(state)
        if state["execution"] == "masked":
            self._execution.to_masked()
        elif self.execution == "sparse":
            self._execution.change_layout(self._masks)
        else:
            self._execution.to_sparse(self._masks)
        self._execution.accumulate_if_due()
        self._changed = self.execution == "masked"

    def _load_masks(self, state: dict[str, Any]) -> None:
        """Loads all of a saved state but the execution."""
        check_saved_state(state, self.config, self._by_name(self._masks))
        saved = [state["masks"][group.targets[0].name] for group in self._mask_groups]
        self._set_masks([mask.to("cpu", torch.bool, copy=True) for mask in saved])
        self._clock.step_count = int(state["step_count"])
        self._clock.finished = bool(state["finished"])
        self._clock.postponed = bool(state.get("postponed", False))
        self.sparsity_target = float(state["sparsity_target"])
        if self._regrown is not None:
            self._regrown.load_state_dict(state[REGROWN])

    def _update_or_postpone(self) -> None:
        """Updates the masks; if a gradient is not finite, the next step does."""
        try:
            masks = self._update.updated(self._masks, self.step_count)
        except NonFiniteGradientError as error:
            self._clock.postponed = True
            self._execution.discard_dense_gradients()
            # In the sparse state the optimizer sees other products than the dense gradients, which may overflow alone.
            seen = self.execution == "masked" or not self._checks.live_gradients_are_finite()
            self._checks.finite.postpone(error, ignored=error.only_dead or not seen)
        else:
            self.sparsity_target = target_sparsity(self.config, self.step_count)
            if self._regrown is not None:
                self._regrown.grow(self._masks, masks)
            self._set_masks(masks)
            self._clock.postponed = False
            self._checks.finite.updated()

    def _trim(self) -> None:
        """Trims the masks to the exact final budget and fixes them."""
        self.sparsity_target = self.config.sparsity
        self._set_masks(self._update.trimmed(self._masks, self.step_count))
        self._clock.finished = True

    def _set_masks(self, masks: list[Tensor]) -> None:
        """Sets new masks, on the CPU."""
        self._masks = masks
        self._device_masks.set(masks)
        self._dead_blocks.set(masks)
        self._rates.set_density(1 - self.sparsity_achieved)
        self._changed = True

    @torch.no_grad()
    def _clear_dead(self) -> None:
        """Clears gradients in every step. State and weights stay zero, so they are cleared only after a mask change."""
        if self.execution == "sparse":
            if self._changed:
                self._execution.change_layout(self._masks)
        else:
            self._dead_blocks.clear_gradients()
            if self._changed:
                self._clear_state()
                self._clear_weights()
        self._changed = False

    @torch.no_grad()
    def _clear_weights(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Clears the weights of dead blocks; of several optimizers, those of one."""
        if self.execution == "masked":
            self._dead_blocks.clear_weights(None if optimizer is None else held_by(optimizer))

    @torch.no_grad()
    def _clear_state(self) -> None:
        """Clears the optimizer state of dead blocks."""
        if self.execution == "masked":
            self._dead_blocks.clear_state(self._optimizers.tensors_like)

    def _by_name(self, masks: list[Tensor]) -> dict[str, Tensor]:
        return {target.name: masks[group.index] for group in self._mask_groups for target in group.targets}

    def _reshard(self) -> None:
        """Puts the sharded parameters of `fully_shard` back in their modules; a forward pass may leave whole copies."""
        for module in self._sharded:
            module.reshard()

    def _before_optimizer(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        self._checks.before_optimizer(optimizer)
        if self._regrown is not None:
            self._regrown.before_optimizer(optimizer)
        self._rates.scale()

    def _after_optimizer(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        self._rates.restore()
        self._checks.after_optimizer()
        # An optimizer that mixes elements (Muon) moves dead weights even if gradients and moments are zero.
        self._clear_weights(None if len(self._optimizers.names) == 1 else optimizer)

    def _after_load(self, *_: object) -> None:
        self._checks.after_load()
        self._loaded = True
        if self.config.lr_density_power:
            # `load_state_dict` makes new parameter groups.
            self._rates.groups = self._optimizers.groups_of({id(p) for g in self._mask_groups for p in g.parameters})
