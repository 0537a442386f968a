"""A mask update of a whole model: scores, budgets and selection, one pruning scope after the other."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from blast.errors import BlastError
from blast.sparsity.config import SparsifyConfig
from blast.sparsity.layer_budgets import scope_budgets
from blast.sparsity.mask_groups import MaskGroup, pruning_scopes
from blast.sparsity.one_shot import prune_to_budget
from blast.sparsity.optimizers import Optimizers
from blast.sparsity.prune_and_grow import prune_and_grow
from blast.sparsity.schedule import grow_share, swap_limit, target_sparsity
from blast.sparsity.scores import keep_and_grow_scores, keep_scores
from blast.sparsity.selection import as_numpy, live_cost
from blast.sparsity.starved import warn_of_starved


class MaskUpdate:
    """Chooses the masks of a model at the mask updates of its training.

    Masks are bool `[rows, cols]` on the CPU, true where a block is live, one for each mask group.

    Args:
        mask_groups: All mask groups of the model.
        config: The schedule, the scores, and how blocks grow.
        optimizers: The optimizers of the matrices, for gradients and second moments.
    """

    def __init__(self, mask_groups: Sequence[MaskGroup], config: SparsifyConfig, optimizers: Optimizers) -> None:
        self._mask_groups, self._config, self._optimizers = mask_groups, config, optimizers
        self._scopes = pruning_scopes(mask_groups, config.ranking)
        self._warned = False

    def updated(self, masks: Sequence[Tensor], step: int) -> list[Tensor]:
        """The masks after the mask update of a step.

        Args:
            masks: The present masks.
            step: The step, counted from 0.

        Raises:
            NonFiniteGradientError: if a gradient is not finite.
            BlastError: if a weight is not finite, or no parameter has a gradient.
        """
        config, moments = self._config, self._optimizers.second_moment
        grow: list[Tensor] | None = None
        if config.grow == "none":
            keep = keep_scores(self._mask_groups, masks, config, step, moments)
        else:
            self._check_any_gradient(step)
            keep, grow = keep_and_grow_scores(self._mask_groups, masks, config, step, moments)
        new, changes = list(masks), [self._with_gradients(scope, grow) for scope in self._scopes]
        growing = [config.grow == "swap" and bool(changing) for changing in changes]
        budgets = scope_budgets(self._scopes, config, target_sparsity(config, step), masks, keep, growing=growing)
        for scope, changing, budget in zip(self._scopes, changes, budgets, strict=True):
            if not changing:
                continue
            chosen = prune_and_grow(
                live=[masks[group.index] for group in changing],
                keep_scores=[keep[group.index] for group in changing],
                grow_scores=None if grow is None else [grow[group.index] for group in changing],
                budget=self._left_of(budget, masks, scope, changing),
                grow=config.grow,
                swap_limit=swap_limit(config, step),
                costs=[group.cost for group in changing],
                grow_share=grow_share(config, step),
            )
            for group, mask in zip(changing, chosen, strict=True):
                new[group.index] = mask
        self._warned = self._warned or warn_of_starved(self._mask_groups, new, config, target_sparsity(config, step))
        return new

    def trimmed(self, masks: Sequence[Tensor], step: int) -> list[Tensor]:
        """The masks of the exact final budget; arguments as for `updated`."""
        moments = self._optimizers.second_moment
        return prune_to_budget(self._mask_groups, masks, self._config, self._config.sparsity, step, moment_of=moments)

    def _check_any_gradient(self, step: int) -> None:
        """Checks that there was a backward pass; it may have left out all matrices to prune."""
        if self._config.grow_score == "gradient" and not self._optimizers.have_gradients:
            raise BlastError(
                f"no parameter has a gradient at the mask update of step {step}; call sparsifier.step() after "
                "backward() and before zero_grad(), and use no optimizer that steps inside backward()."
            )

    def _with_gradients(self, scope: list[MaskGroup], grow: list[Tensor] | None) -> list[MaskGroup]:
        """The mask groups of a scope whose masks may change: the gradient of the others is missing, or all zero."""
        if grow is None or self._config.grow_score != "gradient":
            return scope
        return [group for group in scope if as_numpy(grow[group.index]).any()]

    def _left_of(self, budget: int, masks: Sequence[Tensor], scope: list[MaskGroup], changing: list[MaskGroup]) -> int:
        """The weight blocks that the changing mask groups of a scope may keep, beside those that stay as they are."""
        indices = {group.index for group in changing}
        staying = [group for group in scope if group.index not in indices]
        taken = live_cost([masks[group.index] for group in staying], [group.cost for group in staying])
        return max(budget - taken, sum(group.cost for group in changing))
