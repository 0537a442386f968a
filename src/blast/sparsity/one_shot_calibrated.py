"""One-shot pruning that looks at activations: block statistics as in Wanda, and optimal-brain-surgeon blocks.

- `wanda` (arXiv 2306.11695, there for single weights): a block scores `sqrt(sum of w² * mean(x²))`.
- `obs` (arXiv 2301.00774, there for single weights): a block scores the error of the layer's output that its removal
  costs; when it is removed, the blocks to its right compensate.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from blast.block_sparse.blocks import BlockShape
from blast.errors import BlastError
from blast.model.agreement import in_eval_mode
from blast.model.target import Target
from blast.sparsity.calibration import Forward, input_moments
from blast.sparsity.compensation import block_saliency, damped_inverse, remove_blocks_
from blast.sparsity.config import SparsifyConfig
from blast.sparsity.joint_scores import joint_scores
from blast.sparsity.layer_budgets import weight_outliers
from blast.sparsity.mask_groups import MaskGroup, find_mask_groups
from blast.sparsity.one_shot import apply_masks_, full_mask, prune_to_budget
from blast.sparsity.permutation import permute_hidden_units_
from blast.sparsity.staged_forward import StagedForward, staged_forward
from blast.sparsity.starved import warn_of_starved


@torch.no_grad()
def prune_once_(
    model: nn.Module, config: SparsifyConfig, batches: Iterable[Any] = (), forward: Forward | None = None
) -> dict[str, Tensor]:
    """Prunes a model once to the final sparsity, in place, by any keep score.

    Args:
        model: A trained dense model.
        config: `sparsity`, `block`, `keep_score`, `joint_hidden`, `ranking`, `layer_spread`, `permute_hidden` and the
            choice of targets are used.
        batches: Inputs for the calibration, read several times; `wanda` and `obs` need them.
        forward: Runs the model on one of them.

    Returns:
        For each matrix, by name, a bool mask `[out / b_out, in / b_in]`, true where live.

    Raises:
        BlastError: if the keep score needs a calibration and there is none, or if it cannot be made.
    """
    batches = list(batches)
    if config.calibrated and (not batches or forward is None):
        raise BlastError(
            f"the keep score '{config.keep_score}' needs inputs of the model; give batches and a forward function."
        )
    mask_groups, _ = find_mask_groups(model, config)
    if config.permute_hidden:
        permute_hidden_units_(model, [target.name for group in mask_groups for target in group.targets], config.block)
    scores = outliers = None
    if config.calibrated and forward is not None:
        targets = [target for group in mask_groups for target in group.matrices]
        moments = input_moments(model, targets, batches, forward, full=config.keep_score == "obs")
        scores = _calibrated_scores(mask_groups, config, moments)
        outliers = weight_outliers(mask_groups, moments) if config.layer_spread else None
    whole = [full_mask(group) for group in mask_groups]
    chosen = prune_to_budget(mask_groups, whole, config, config.sparsity, step=0, scores=scores, outliers=outliers)
    warn_of_starved(mask_groups, chosen, config, config.sparsity)
    masks = {t.name: mask.to(g.device) for g, mask in zip(mask_groups, chosen, strict=True) for t in g.targets}
    if config.keep_score == "obs" and forward is not None:
        with in_eval_mode(model):
            _remove_in_order(model, mask_groups, masks, batches, forward, config.block)
    apply_masks_(model, masks, config.block)
    return masks


def _calibrated_scores(
    mask_groups: Sequence[MaskGroup], config: SparsifyConfig, moments: dict[str, Tensor]
) -> list[Tensor]:
    """The score `[rows, cols]` of each block of each mask group, on the CPU: its root mean square over the matrices."""
    squares = {}
    for target in (target for group in mask_groups for target in group.matrices):
        weight = target.weight.float()
        if config.keep_score == "obs":
            squares[target.name] = block_saliency(weight, damped_inverse(moments[target.name]), config.block)
        else:
            weighted = weight.square() * moments[target.name]
            rows, cols = (side // step for side, step in zip(weight.shape, config.block, strict=True))
            squares[target.name] = weighted.view(rows, config.block.rows, cols, config.block.cols).sum((1, 3))
    scores = [
        torch.stack([squares[target.name] for target in group.matrices]).mean(0).clamp_min(0).sqrt().cpu()
        for group in mask_groups
    ]
    if config.joint_hidden:
        return joint_scores([group.targets for group in mask_groups], config.block, scores)
    return scores


def _remove_in_order(
    model: nn.Module,
    mask_groups: Sequence[MaskGroup],
    masks: dict[str, Tensor],
    batches: list[Any],
    forward: Forward,
    block: BlockShape,
) -> None:
    """Removes the dead blocks of one stage after the other, each calibrated with what the earlier ones have become."""
    stages = _stages(mask_groups)
    staged = _staged(model, stages, batches, forward)
    for stage in stages:
        if staged is None:
            moments = input_moments(model, stage, batches, forward, full=True)
        else:
            staged.go_to(stage[0].layer or 0)
            moments = input_moments(model, stage, range(len(batches)), staged, full=True)
        for target in stage:
            remove_blocks_(target.weight, masks[target.name], damped_inverse(moments[target.name]), block)


def _staged(
    model: nn.Module, stages: Sequence[Sequence[Target]], batches: Sequence[Any], forward: Forward
) -> StagedForward | None:
    """Runs one layer at a time, if all stages are in layers of one list and follow its order; else None."""
    places = [(str(stage[0].layer_path).rpartition(".")[0], stage[0].layer) for stage in stages]
    paths, numbers = {path for path, _ in places}, [number for _, number in places if number is not None]
    if len(paths) != 1 or "" in paths or len(numbers) < len(places) or numbers != sorted(numbers):
        return None
    return staged_forward(model, paths.pop(), forward, batches)


def _stages(mask_groups: Sequence[MaskGroup]) -> list[list[Target]]:
    """The matrices in the order in which the model uses them, as names and roles tell it."""
    stages: dict[object, list[Target]] = {}
    for group in mask_groups:
        for target in group.matrices:
            stages.setdefault((target.layer_path, target.role in ("down", "fc2")), []).append(target)
    return list(stages.values())
