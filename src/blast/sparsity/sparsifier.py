"""`Sparsifier`, the one object that a training loop needs: call `sparsifier.step()` after each `backward()`.

This is our reading of the method ("iteratively sparsifies weight matrices into a block sparsity pattern"). Zhu &
Gupta's cubic schedule decides how many blocks are empty. RigL's drop and grow decide which blocks.

Training starts masked-dense: the model keeps its own modules, and dead blocks are exact zeros. Its forward pass is then
the masked forward pass, and its dense gradient is there to grow blocks by. At the break-even sparsity
(`SparsifyConfig.execution`) training switches to the sparse state, which holds live blocks only.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Mapping, Sequence
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
from blast.sparsity.mask_groups import MaskGroup, find_mask_groups, parameter_of, pruning_scopes
from blast.sparsity.one_shot import full_mask, prune_to_budget
from blast.sparsity.optimizers import Handle, Optimizers, check_state, held_by
from blast.sparsity.prune_and_grow import prune_and_grow
from blast.sparsity.schedule import grow_share, swap_limit, target_sparsity
from blast.sparsity.scores import NonFiniteGradientError, keep_and_grow_scores, keep_scores
from blast.sparsity.selection import as_numpy, block_budget, live_cost
from blast.sparsity.usage_checks import AccumulationCheck, FiniteCheck, ReplacementCheck

STATE_FORMAT = 2
# What every saved state has; states of before have no `postponed`.
STATE_KEYS = ("config", "step_count", "finished", "execution", "world_size", "sparsity_target", "masks")
# All sparsifiers that no newer one has replaced.
_IN_USE: weakref.WeakSet[Sparsifier] = weakref.WeakSet()


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
        self._scopes = pruning_scopes(self._mask_groups, config.ranking)
        self._optimizers.check_matrices(self._mask_groups)
        check_state(self._optimizers, self._mask_groups, sparse=False)
        # Coming steps that check the optimizer state: an optimizer makes it in its first step.
        self._checks_left = 2
        # Whether an optimizer state was loaded since the last step.
        self._loaded = False
        self.dense_targets = [target.name for target in dense]
        pruned = [target for group in self._mask_groups for target in group.matrices]
        self._dense_mlp_weights = dense_mlp_weights(model, pruned)._asdict()
        self._clock, self._rates = StepClock(config), DensityScaledRates(config.lr_density_power)
        self.sparsity_target = target_sparsity(config, 0)
        # Masks are chosen and kept on the CPU. Copies on the devices clear the matrices.
        self._device_masks, self._dead_blocks = DeviceMasks(self._mask_groups), DeadBlocks(self._mask_groups)
        self._set_masks([full_mask(group) for group in self._mask_groups])
        if state is not None:
            self._load_masks(state)
        elif self.sparsity_target > 0:
            self._set_masks(prune_to_budget(self._mask_groups, self._masks, config, self.sparsity_target, step=0))
        self._execution = Execution(model, self._optimizers, self._mask_groups, config, self._clock, wrapper)
        self._finite, self._accumulation = FiniteCheck(), AccumulationCheck()
        self._replacement = ReplacementCheck(model, self._mask_groups)
        self.cuda_graphs = CudaGraphSupport(self._clock, self._execution, self._accumulation, self._finite)
        if config.lr_density_power:
            self._rates.groups = self._optimizers.split_groups({id(parameter_of(target)) for target in pruned})
        # From here on nothing is refused.
        self._hooks: list[Handle] = self._optimizers.register_hooks(
            self._before_optimizer, self._after_optimizer, self._after_load
        )
        self._take_over()
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
        self._check_in_use()
        self._reshard()
        self._replacement.check()
        self._finite.new_step()
        due = self.update_due
        if due or self._checks_left:
            check_state(self._optimizers, self._mask_groups, sparse=self.execution == "sparse")
            self._checks_left = max(0, self._checks_left - 1)
        if self._loaded:
            self._clear_state()
            self._loaded = False
        if due:
            # While an update waits, skipped steps look like accumulation.
            if not self._clock.postponed:
                self._accumulation.before_update(self._mask_groups, self.step_count)
            self._execution.before_update()
            if self._clock.last_update:
                self._trim()
            else:
                self._update_or_postpone()
        self._clear_dead()
        self._clock.step_count += 1
        if due:
            self._execution.switch_if_due(self._masks, self.sparsity_achieved)
        self._execution.accumulate_if_due()
        self._accumulation.after_step(self._mask_groups)

    def finish(self) -> None:
        """Trims the masks to the exact final budget and fixes them, unless the schedule has done so."""
        self._check_in_use()
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
        self._check_in_use()
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
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Loads a saved state. Load the states of the model and of the optimizer after it.

        The order matters: this state decides whether the other two hold dense matrices or live blocks.

        Args:
            state: A result of `state_dict`.

        Raises:
            BlastError: if the state has another config, number of processes, or set of matrices.
        """
        self._check_in_use()
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
        _check_state(state, self.config, self._by_name(self._masks))
        saved = [state["masks"][group.targets[0].name] for group in self._mask_groups]
        self._set_masks([mask.to("cpu", torch.bool, copy=True) for mask in saved])
        self._clock.step_count = int(state["step_count"])
        self._clock.finished = bool(state["finished"])
        self._clock.postponed = bool(state.get("postponed", False))
        self.sparsity_target = float(state["sparsity_target"])

    def _update_or_postpone(self) -> None:
        """Updates the masks; if a gradient is not finite, the next step does."""
        try:
            self._update(self.step_count)
        except NonFiniteGradientError as error:
            self._clock.postponed = True
            self._execution.discard_dense_gradients()
            # In the sparse state the optimizer sees other products than the dense gradients, which may overflow alone.
            seen = self.execution == "masked" or not self._live_gradients_are_finite()
            self._finite.postpone(error, ignored=error.only_dead or not seen)
        else:
            self._clock.postponed = False
            self._finite.updated()

    def _live_gradients_are_finite(self) -> bool:
        gradients = [p.grad for group in self._mask_groups for p in group.parameters if p.grad is not None]
        return all(bool(gradient.isfinite().all()) for gradient in gradients)

    def _update(self, step: int) -> None:
        """Chooses new masks for a step, one pruning scope after the other."""
        keep: list[Tensor]
        grow: list[Tensor] | None = None
        if self.config.grow == "none":
            keep = keep_scores(self._mask_groups, self._masks, self.config, step, self._optimizers.second_moment)
        else:
            self._check_any_gradient(step)
            moments = self._optimizers.second_moment
            keep, grow = keep_and_grow_scores(self._mask_groups, self._masks, self.config, step, moments)
        self.sparsity_target = target_sparsity(self.config, step)
        masks = list(self._masks)
        for scope in self._scopes:
            changing = self._with_gradients(scope, grow)
            if not changing:
                continue
            costs = [group.cost for group in changing]
            chosen = prune_and_grow(
                live=[self._masks[group.index] for group in changing],
                keep_scores=[keep[group.index] for group in changing],
                grow_scores=None if grow is None else [grow[group.index] for group in changing],
                budget=self._budget(scope, changing),
                grow=self.config.grow,
                swap_limit=swap_limit(self.config, step),
                costs=costs,
                grow_share=grow_share(self.config, step),
            )
            for group, mask in zip(changing, chosen, strict=True):
                masks[group.index] = mask
        self._set_masks(masks)

    def _check_any_gradient(self, step: int) -> None:
        """Checks that there was a backward pass; it may have left out all matrices to prune."""
        if self.config.grow_score == "gradient" and not self._optimizers.have_gradients:
            raise BlastError(
                f"no parameter has a gradient at the mask update of step {step}; call sparsifier.step() after "
                "backward() and before zero_grad(), and use no optimizer that steps inside backward()."
            )

    def _with_gradients(self, scope: list[MaskGroup], grow: list[Tensor] | None) -> list[MaskGroup]:
        """The mask groups of a scope whose masks may change: the gradient of the others is missing, or all zero."""
        if grow is None or self.config.grow_score != "gradient":
            return scope
        return [group for group in scope if as_numpy(grow[group.index]).any()]

    def _budget(self, scope: list[MaskGroup], changing: list[MaskGroup]) -> int:
        """The weight blocks that the changing mask groups of a scope may keep, beside those that stay as they are."""
        costs = [group.cost for group in scope]
        budget = block_budget([group.blocks for group in scope], costs, self.sparsity_target)
        indices = {group.index for group in changing}
        staying = [group for group in scope if group.index not in indices]
        taken = live_cost([self._masks[group.index] for group in staying], [group.cost for group in staying])
        return max(budget - taken, sum(group.cost for group in changing))

    def _trim(self) -> None:
        """Trims the masks to the exact final budget and fixes them."""
        self.sparsity_target = target = self.config.sparsity
        moments = self._optimizers.second_moment
        masks = prune_to_budget(self._mask_groups, self._masks, self.config, target, self.step_count, moment_of=moments)
        self._set_masks(masks)
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
        # A gradient scaler hands `found_inf` to a fused optimizer, which then skips the step by itself.
        self._finite.before_optimizer(scaled=getattr(optimizer, "found_inf", None) is not None)
        self._rates.scale()

    def _after_optimizer(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        self._rates.restore()
        # An optimizer that mixes elements (Muon) moves dead weights even if gradients and moments are zero.
        if not self.finished:
            self._accumulation.after_optimizer(self._mask_groups)
        self._clear_weights(None if len(self._optimizers.names) == 1 else optimizer)

    def _after_load(self, *_: object) -> None:
        self._optimizers.check_loaded(self._mask_groups)
        self._checks_left, self._loaded = 2, True

    def _take_over(self) -> None:
        """Retires older sparsifiers of the same matrices, as when a cell of a notebook is run again."""
        ours = {(id(target.module), target.name) for group in self._mask_groups for target in group.targets}
        for other in list(_IN_USE):
            targets = [target for group in other._mask_groups for target in group.targets]
            if any((id(target.module), target.name) in ours for target in targets):
                for hook in other._hooks:
                    hook.remove()
                _IN_USE.discard(other)
        _IN_USE.add(self)

    def _check_in_use(self) -> None:
        if self not in _IN_USE:
            raise BlastError(
                "a newer Sparsifier prunes the same matrices, so this one is no longer in use; use the newer one."
            )


def _check_state(state: Mapping[str, Any], config: SparsifyConfig, masks: Mapping[str, Tensor]) -> None:
    """Checks that a saved state fits this run.

    Args:
        state: A result of `Sparsifier.state_dict`.
        config: The config of this run.
        masks: The masks of this run, by name.

    Raises:
        BlastError: if it is no such state, or the format, the config, the number of processes or the matrices differ.
    """
    check_argument("the saved state of the sparsifier", state, Mapping, "a result of sparsifier.state_dict()")
    if state.get("format") != STATE_FORMAT:
        raise BlastError(
            f"the saved sparsifier has format {state.get('format')}, not {STATE_FORMAT}; start the training again."
        )
    missing = [key for key in STATE_KEYS if key not in state]
    if missing or not isinstance(state["masks"], Mapping) or not isinstance(state["config"], Mapping):
        what = f"lacks '{missing[0]}'" if missing else "is damaged"
        raise BlastError(f"the saved state of the sparsifier {what}; give a result of sparsifier.state_dict().")
    ours, theirs = config.to_dict(), state["config"]
    keys = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    if keys:
        differ = ", ".join(f"{key} was {theirs.get(key)!r} and is {ours.get(key)!r}" for key in keys)
        raise BlastError(f"the saved sparsifier has another config ({differ}); resume with the saved one.")
    if state["world_size"] != world_size():
        raise BlastError(
            f"the saved sparsifier is from {state['world_size']} processes and this run has {world_size()}; "
            "resume with the same number, because each process has its share of the data."
        )
    shapes = {name: mask.shape for name, mask in masks.items()}
    if shapes != {name: mask.shape for name, mask in state["masks"].items()}:
        raise BlastError("the saved masks belong to other matrices than this model has; resume with the saved model.")
