"""The one object a training loop needs: `sparsifier.step()` once a step, after `backward()`.

This is our reading of the method ("iteratively sparsifies weight matrices into a block sparsity pattern"): Zhu &
Gupta's cubic schedule decides how much is empty, RigL's drop and grow decide which blocks, and both see whole blocks.
At first the model keeps its own modules: dead blocks hold exact zeros, so that its dense forward is the masked forward
and its dense gradient is there to grow by. From the break-even on (`SparsifyConfig.execution`) it holds live blocks
alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from blast.block_sparse.sharding import is_sharded, sharded_modules
from blast.distributed import world_size
from blast.errors import BlastError
from blast.sparsity.clock import StepClock
from blast.sparsity.config import SparsifyConfig
from blast.sparsity.cuda_graphs import CudaGraphSupport
from blast.sparsity.device_masks import DeviceMasks
from blast.sparsity.execution.switch import Execution
from blast.sparsity.mask_groups import groups_of, units_of
from blast.sparsity.one_shot import best_masks, full_mask
from blast.sparsity.prune_and_grow import prune_and_grow
from blast.sparsity.schedule import swap_limit, target_sparsity
from blast.sparsity.scores import unit_scores
from blast.sparsity.selection import block_budget, live_cost
from blast.sparsity.usage_checks import AccumulationCheck, ModuleCheck, check_held

STATE_FORMAT = 2


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

    After every optimizer step the weights in dead blocks are exactly zero, whatever the optimizer. With a schedule that
    starts sparse the first mask is applied when the object is made: to resume, make it first, then load its own state,
    then those of the model and the optimizer.

    In the sparse state (`execution`) matrices are `BlockLinear`, whose parameters are replaced at mask updates, also in
    the optimizer: take them from `model.parameters()` where they are needed, as for clipping. In data-parallel training
    that takes `blast.average_gradients(model)` in the place of `DistributedDataParallel` or `fully_shard`, which stay
    masked-dense. All processes choose the same masks.
    A compiled model calls its sparse MLPs outside its graphs as long as masks change, and is not compiled anew then.

    Args:
        model: Any model, after `fully_shard` if it is to be sharded; its matrices are found by structure (see
            `blast.model.discovery`).
        optimizer: The optimizer over its parameters.
        config: What to prune, how far, how fast.

    Raises:
        BlastError: if a target matches nothing, a block does not divide a matrix, or the optimizer holds none of the
            matrices; if sparse execution is asked for with an optimizer or a wrapper that does not allow it.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, config: SparsifyConfig) -> None:
        # The wrappers of torch.compile and of data-parallel training would put themselves before every name.
        model = getattr(model, "_orig_mod", model)
        keeper = "DistributedDataParallel" if isinstance(model, nn.parallel.DistributedDataParallel) else None
        if keeper:
            model = model.module
        self._sharded = sharded_modules(model)
        self._reshard()
        if any(is_sharded(parameter) for parameter in model.parameters()):
            keeper = "fully_shard"
        self.model = model
        self.optimizer = optimizer
        self.config = config
        self._units, dense = units_of(model, config)
        self._groups = groups_of(self._units, config.ranking)
        check_held(optimizer, self._units)
        self.dense_targets = [target.name for target in dense]
        self._clock = StepClock(config)
        self.sparsity_target = target_sparsity(config, 0)
        # Masks are chosen and kept on the host; the matrices are cleared by copies of them.
        self._device_masks = DeviceMasks(self._units)
        self._take([full_mask(unit) for unit in self._units])
        if self.sparsity_target > 0:
            self._take(best_masks(self._units, self._masks, config, self.sparsity_target, step=0))
        self._execution = Execution(model, optimizer, self._units, config, self._clock, keeper)
        self._clear_weights()
        self._accumulation, self._modules = AccumulationCheck(), ModuleCheck(model, self._units)
        # For loops that replay their steps as CUDA graphs.
        self.cuda_graphs = CudaGraphSupport(self._clock, self._execution, self._accumulation)
        # An optimizer whose update mixes elements (Muon) moves dead weights even with clean gradients and moments.
        if hasattr(optimizer, "register_step_post_hook"):
            optimizer.register_step_post_hook(lambda *_: self._after_optimizer())
        self._execution.settle(self._masks, self.sparsity_achieved)
        self._execution.accumulate_if_due()

    @property
    def masks(self) -> dict[str, Tensor]:
        """Copies of the masks by module name, bool `[out / b_out, in / b_in]`; what shares a mask shares the tensor."""
        return self._by_name(self._device_masks.live())

    @property
    def step_count(self) -> int:
        """Optimization steps done."""
        return self._clock.step_count

    @property
    def finished(self) -> bool:
        """Whether the masks are fixed: at the exact final budget, until the end of the training."""
        return self._clock.finished

    @property
    def execution(self) -> str:
        """How the model runs now: `masked` or `sparse`."""
        return self._execution.state

    @property
    def sparsity_achieved(self) -> float:
        """Share of all blocks of the pruned matrices that are empty; with `union` below the target until the trim."""
        costs = [unit.cost for unit in self._units]
        total = sum(unit.blocks * unit.cost for unit in self._units)
        return 1 - live_cost(self._masks, costs) / total

    @property
    def update_due(self) -> bool:
        """Whether the coming `step()` chooses masks anew, or fixes them; execution changes in such steps alone."""
        return self._clock.update_due

    def step(self) -> None:
        """Update the mask if it is due, then clear gradients, optimizer state and weights of dead blocks.

        Call it once per optimization step, after `backward()` and before clipping and `optimizer.step()`.

        Raises:
            BlastError: at a mask update, if a gradient is missing, NaN or infinite, or still being summed up over
                micro-batches; or if the matrices were replaced.
        """
        self._reshard()
        self._modules.check()
        due = self.update_due
        if due:
            self._accumulation.before_update(self._units, self.step_count)
            self._execution.before_update()
            if self._clock.last_update:
                self._trim()
            else:
                self._update(self.step_count)
        self._clear_dead()
        self._clock.step_count += 1
        if due:
            self._execution.settle(self._masks, self.sparsity_achieved)
        self._execution.accumulate_if_due()
        self._accumulation.after_step(self._units)

    def finish(self) -> None:
        """Trim the mask to the exact final budget now, if the schedule has not done so yet, and fix it."""
        if not self.finished:
            self._reshard()
            self._trim()
            self._clear_dead()
            self._execution.settle(self._masks, self.sparsity_achieved)

    def to_sparse(self) -> None:
        """Hold and train live blocks alone from now on; to be called between two steps, not after `backward()`.

        Raises:
            BlastError: if the optimizer cannot take the parameters; nothing is changed then.
        """
        self._execution.enter(self._masks)
        self._execution.accumulate_if_due()

    def to_masked(self) -> None:
        """Hold dense matrices again, with zeros in dead blocks; beyond the break-even until the next mask update."""
        self._execution.leave()

    def report(self) -> dict[str, Any]:
        """What was pruned, as plain JSON values.

        Returns:
            `target` and `achieved` sparsity of the whole; `matrices`, by name, with `role`, `shape` (out, in),
            `block`, `blocks`, `live`, `target`, `achieved`; and `dense`, the targets left dense on purpose.
        """
        matrices = {}
        for unit in self._units:
            matrices |= unit.report(live_cost([self._masks[unit.index]], [1]), self.sparsity_target)
        whole = {"target": self.sparsity_target, "achieved": self.sparsity_achieved}
        return {**whole, "matrices": matrices, "dense": list(self.dense_targets)}

    def state_dict(self) -> dict[str, Any]:
        """Everything that an exact resume needs besides the model and the optimizer: plain values and tensors."""
        return {
            "format": STATE_FORMAT,
            "config": self.config.to_dict(),
            "step_count": self.step_count,
            "finished": self.finished,
            "execution": self.execution,
            "world_size": world_size(),
            "sparsity_target": self.sparsity_target,
            "masks": {name: mask.clone() for name, mask in self._by_name(self._masks).items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved state; then load those of the model and of the optimizer, which are in that state's form.

        Raises:
            BlastError: if the state was saved under another config, by another number of processes, or for other
                matrices.
        """
        _check_state(state, self.config, self._by_name(self._masks))
        saved = [state["masks"][unit.targets[0].name] for unit in self._units]
        self._take([mask.to("cpu", torch.bool, copy=True) for mask in saved])
        self._clock.step_count = int(state["step_count"])
        self._clock.finished = bool(state["finished"])
        self.sparsity_target = float(state["sparsity_target"])
        if state["execution"] == "masked":
            self._execution.leave()
        elif self.execution == "sparse":
            self._execution.repack(self._masks)
        else:
            self._execution.enter(self._masks)
        self._execution.accumulate_if_due()
        self._changed = self.execution == "masked"

    def _update(self, step: int) -> None:
        """Choose new masks for a step, group by group."""
        self.sparsity_target = target_sparsity(self.config, step)
        scores = unit_scores(self._units, self._masks, self.config, step, grow=self.config.grow != "none")
        masks = list(self._masks)
        for group in self._groups:
            costs = [unit.cost for unit in group]
            chosen = prune_and_grow(
                live=[self._masks[unit.index] for unit in group],
                keep_scores=[scores.keep[unit.index] for unit in group],
                grow_scores=None if scores.grow is None else [scores.grow[unit.index] for unit in group],
                budget=block_budget([unit.blocks for unit in group], costs, self.sparsity_target),
                grow=self.config.grow,
                swap_limit=swap_limit(self.config, step),
                costs=costs,
            )
            for unit, mask in zip(group, chosen, strict=True):
                masks[unit.index] = mask
        self._take(masks)

    def _trim(self) -> None:
        """Cut the masks to the exact final budget and fix them."""
        self.sparsity_target = self.config.sparsity
        self._take(best_masks(self._units, self._masks, self.config, self.sparsity_target, self.step_count))
        self._clock.finished = True

    def _take(self, masks: list[Tensor]) -> None:
        """Takes new masks, on the host."""
        self._masks = masks
        self._device_masks.take(masks)
        self._changed = True

    @torch.no_grad()
    def _clear_dead(self) -> None:
        """Clear gradients in every step; state and weights only after the mask changed, since nothing revives them."""
        if self.execution == "sparse":
            if self._changed:
                self._execution.repack(self._masks)
        else:
            for unit, dead in zip(self._units, self._device_masks.dead(), strict=True):
                unit.clear_dead_gradient(dead)
                if self._changed:
                    unit.clear_dead_state(dead, self.optimizer)
            if self._changed:
                self._clear_weights()
        self._changed = False

    @torch.no_grad()
    def _clear_weights(self) -> None:
        if self.execution == "masked":
            for unit, dead in zip(self._units, self._device_masks.dead(), strict=True):
                unit.clear_dead(dead)

    def _by_name(self, masks: list[Tensor]) -> dict[str, Tensor]:
        return {target.name: masks[unit.index] for unit in self._units for target in unit.targets}

    def _reshard(self) -> None:
        """Puts the parameters of `fully_shard` back in their modules: a forward pass may leave whole copies there."""
        for module in self._sharded:
            module.reshard()

    def _after_optimizer(self) -> None:
        self._accumulation.after_optimizer()
        self._clear_weights()


def _check_state(state: Mapping[str, Any], config: SparsifyConfig, masks: Mapping[str, Tensor]) -> None:
    """Raises unless a state is of this format, config, number of processes and of these matrices.

    Args:
        state: What `Sparsifier.state_dict` gave.
        config: Of the run that would go on.
        masks: Its masks, by name.
    """
    if state.get("format") != STATE_FORMAT:
        raise BlastError(f"the saved sparsifier has format {state.get('format')}, not {STATE_FORMAT}; start afresh.")
    ours, theirs = config.to_dict(), state["config"]
    keys = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    if keys:
        differ = ", ".join(f"{key} was {theirs.get(key)!r} and is {ours.get(key)!r}" for key in keys)
        raise BlastError(f"the saved sparsifier has another config ({differ}); resume with the saved one.")
    if state["world_size"] != world_size():
        raise BlastError(
            f"the saved sparsifier is that of {state['world_size']} processes and this run has {world_size()}; "
            "resume with as many, since each has its share of the data."
        )
    shapes = {name: mask.shape for name, mask in masks.items()}
    if shapes != {name: mask.shape for name, mask in state["masks"].items()}:
        raise BlastError("the saved masks are of other matrices than this model's; resume with the saved model.")
