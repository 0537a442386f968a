"""Pruning a trained model once: the one-shot baseline, and the first mask of every run that starts sparse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from blast.block_sparse.blocks import BlockShape, as_block, block_grid
from blast.block_sparse.sharding import clear_dead_anywhere_
from blast.errors import BlastError, unknown_name
from blast.model.discovery import match_linears
from blast.sparsity.config import SparsifyConfig
from blast.sparsity.mask_groups import Unit, groups_of, units_of
from blast.sparsity.prune_and_grow import keep_best
from blast.sparsity.scores import unit_scores
from blast.sparsity.selection import block_budget


def one_shot_masks(model: nn.Module, config: SparsifyConfig) -> dict[str, Tensor]:
    """Masks at the final sparsity, chosen once from the weights as they are; the model is not changed.

    With `keep_score="random"` these are the masks of the static random baseline.

    Args:
        model: A trained dense model.
        config: Of it: `sparsity`, `block`, `keep_score`, `ranking`, `targets`, `dense_first`, `dense_last`,
            `tie_gate_up`, `seed`.

    Returns:
        For each matrix to prune, by module name, a bool mask `[out / b_out, in / b_in]`, true where live.
    """
    units, _ = units_of(model, config)
    masks = best_masks(units, [full_mask(unit) for unit in units], config, config.sparsity, step=0)
    masks = [mask.to(unit.device) for unit, mask in zip(units, masks, strict=True)]
    return {target.name: mask for unit, mask in zip(units, masks, strict=True) for target in unit.targets}


def apply_masks_(model: nn.Module, masks: Mapping[str, Tensor], block: int | Sequence[int] | BlockShape) -> None:
    """Set all dead blocks of a model to zero, in place.

    Args:
        model: The model the masks were made for.
        masks: By module name, bool `[out / b_out, in / b_in]`.
        block: Shape of a block.

    Raises:
        BlastError: if a name is no linear layer of the model, or a mask does not fit its matrix.
    """
    shape = as_block(block)
    linears = {target.name: target for target in match_linears(model, "*")}
    for name, mask in masks.items():
        if name not in linears:
            raise unknown_name("linear layer", name, linears)
        grid = block_grid(linears[name].shape, shape, name)
        if tuple(mask.shape) != grid:
            raise BlastError(
                f"the mask of '{name}' is {tuple(mask.shape)}, but with blocks of {shape} it has to be {grid}; "
                "give the block that it was made for."
            )
    for name, mask in masks.items():
        weight = linears[name].parameter
        clear_dead_anywhere_(weight, mask.to(weight.device, torch.bool), shape, linears[name].transposed)


def full_mask(unit: Unit) -> Tensor:
    """The mask with every block live, on the host."""
    return torch.ones(unit.grid, dtype=torch.bool)


def best_masks(
    units: Sequence[Unit], live: Sequence[Tensor], config: SparsifyConfig, sparsity: float, step: int
) -> list[Tensor]:
    """The best live blocks at a sparsity, exactly as many as the budget of each group, without growing any.

    Args:
        units: All units of the model.
        live: Their masks so far, on the host.
        config: Of it: `keep_score`, `ranking`, `seed`.
        sparsity: Share of blocks to leave empty.
        step: For error messages.

    Returns:
        The new masks, in the order of `units`, on the host.
    """
    masks = list(live)
    scores = unit_scores(units, live, config, step).keep
    for group in groups_of(units, config.ranking):
        costs = [unit.cost for unit in group]
        budget = block_budget([unit.blocks for unit in group], costs, sparsity)
        kept = keep_best([live[unit.index] for unit in group], [scores[unit.index] for unit in group], budget, costs)
        for unit, mask in zip(group, kept, strict=True):
            masks[unit.index] = mask
    return masks
