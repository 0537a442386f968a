"""Prunes a model once: the one-shot baseline, and the first mask of every run that starts sparse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from blast.block_sparse.blocks import BlockShape, as_block, block_grid
from blast.block_sparse.sharding import clear_dead_anywhere_
from blast.errors import BlastError, unknown_name
from blast.model.discovery import match_matrices
from blast.sparsity.config import SparsifyConfig
from blast.sparsity.layer_budgets import scope_budgets
from blast.sparsity.mask_groups import MaskGroup, MomentOf, find_mask_groups, pruning_scopes
from blast.sparsity.prune_and_grow import keep_best
from blast.sparsity.scores import keep_scores
from blast.sparsity.starved import warn_of_starved


def one_shot_masks(model: nn.Module, config: SparsifyConfig) -> dict[str, Tensor]:
    """Masks at the final sparsity, chosen once from the present weights. The model is not changed.

    With `keep_score="random"` these are the masks of the static random baseline.

    Args:
        model: A trained dense model.
        config: `sparsity`, `block`, `keep_score`, `joint_hidden`, `ranking`, `layer_spread`, `targets`, `dense_first`,
            `dense_last`, `tie_gate_up` and `seed` are used.

    Returns:
        For each matrix to prune, by module name, a bool mask `[out / b_out, in / b_in]`, true where live.
    """
    mask_groups, _ = find_mask_groups(model, config)
    masks = prune_to_budget(mask_groups, [full_mask(group) for group in mask_groups], config, config.sparsity, step=0)
    warn_of_starved(mask_groups, masks, config, config.sparsity)
    masks = [mask.to(group.device) for group, mask in zip(mask_groups, masks, strict=True)]
    return {target.name: mask for group, mask in zip(mask_groups, masks, strict=True) for target in group.targets}


def apply_masks_(model: nn.Module, masks: Mapping[str, Tensor], block: int | Sequence[int] | BlockShape) -> None:
    """Sets all dead blocks of a model to zero, in place.

    Args:
        model: The model that the masks belong to.
        masks: By module name, bool `[out / b_out, in / b_in]`.
        block: Shape of a block.

    Raises:
        BlastError: if a name is no matrix of the model, or a mask does not fit its matrix. Nothing is changed then.
    """
    shape = as_block(block)
    matrices = {target.name: target for target in match_matrices(model, "*")}
    for name, mask in masks.items():
        if name not in matrices:
            raise unknown_name("matrix", name, matrices)
        grid = block_grid(matrices[name].shape, shape, name)
        if tuple(mask.shape) != grid:
            raise BlastError(
                f"the mask of '{name}' is {tuple(mask.shape)}, but blocks of {shape} need {grid}; "
                "give the block size that the mask was made for."
            )
    for name, mask in masks.items():
        matrix = matrices[name]
        weight = matrix.stored(matrix.parameter)
        clear_dead_anywhere_(weight, mask.to(weight.device, torch.bool), shape, matrix.transposed)


def full_mask(group: MaskGroup) -> Tensor:
    """The mask with every block live, on the CPU."""
    return torch.ones(group.grid, dtype=torch.bool)


def prune_to_budget(
    mask_groups: Sequence[MaskGroup],
    live: Sequence[Tensor],
    config: SparsifyConfig,
    sparsity: float,
    step: int,
    scores: Sequence[Tensor] | None = None,
    moment_of: MomentOf | None = None,
    outliers: Mapping[object, float] | None = None,
) -> list[Tensor]:
    """The best live blocks at a sparsity: exactly the budget of each pruning scope, without growth.

    Args:
        mask_groups: All mask groups of the model.
        live: Their present masks, on the CPU.
        config: `keep_score`, `joint_hidden`, `ranking`, `layer_spread` and `seed` are used.
        sparsity: Target share of empty blocks.
        step: Current step, for error messages.
        scores: Keep scores `[rows, cols]` of each mask group, on the CPU; by default those of the config.
        moment_of: As for `keep_scores`.
        outliers: As for `scope_budgets`.

    Returns:
        The new masks, in the order of `mask_groups`, on the CPU.
    """
    masks = list(live)
    scores = keep_scores(mask_groups, live, config, step, moment_of) if scores is None else scores
    scopes = pruning_scopes(mask_groups, config.ranking)
    budgets = scope_budgets(scopes, config, sparsity, live, scores, outliers)
    for scope, budget in zip(scopes, budgets, strict=True):
        costs = [group.cost for group in scope]
        kept = keep_best([live[g.index] for g in scope], [scores[g.index] for g in scope], budget, costs)
        for group, mask in zip(scope, kept, strict=True):
            masks[group.index] = mask
    return masks
