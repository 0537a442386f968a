"""The keep score and the grow score of each block: a mask update ranks blocks by them.

- Keep score of a live block: the Frobenius norm of its weights, the same with each weight multiplied by the root of its
  second moment in Adam, the norm in proportion to the larger ones of its matrix (LAMP), or a random number
  (`SparsifyConfig.keep_score`). With `joint_hidden` the rest of its hidden block multiplies it.
- Grow score of any block: the Frobenius norm of its dense gradient, or a random number (`SparsifyConfig.grow_score`).

Where several matrices share a mask, the score is the root mean square of their norms. The mean, not the sum, makes a
shared block and a single block comparable in a ranking over many matrices.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from blast.distributed import mean_over_ranks_
from blast.errors import BlastError
from blast.sparsity.config import SparsifyConfig
from blast.sparsity.joint_scores import joint_scores
from blast.sparsity.mask_groups import MaskGroup, MomentOf
from blast.sparsity.selection import FloatArray, as_numpy


class NonFiniteGradientError(BlastError):
    """A gradient is NaN or infinite, so that no block can be grown by it.

    Attributes:
        only_dead: Whether that is so in dead blocks only, whose gradients no optimizer sees: a product in float16 can
            overflow there alone.
    """

    def __init__(self, message: str, only_dead: bool) -> None:
        super().__init__(message)
        self.only_dead = only_dead


@torch.no_grad()
def keep_scores(
    mask_groups: Sequence[MaskGroup],
    live: Sequence[Tensor],
    config: SparsifyConfig,
    step: int,
    moment_of: MomentOf | None = None,
) -> list[Tensor]:
    """The keep score of each block; every process gets the same scores.

    Args:
        mask_groups: All mask groups of the model.
        live: Their masks, bool `[rows, cols]` on the CPU.
        config: `keep_score`, `joint_hidden` and `seed` are used.
        step: Current step, for error messages.
        moment_of: Second moments for the keep score of that name, see `MaskGroup.weight_squares`.

    Returns:
        For each mask group `[rows, cols]`, float32 on the CPU. Random scores are the same in every step, so that masks
        at a higher sparsity lie within those at a lower one.

    Raises:
        BlastError: if a weight is not finite.
    """
    norms = _norms_on_cpu(_weight_squares(mask_groups, config, moment_of))
    return _keep_scores(mask_groups, live, norms, config, step)


@torch.no_grad()
def keep_and_grow_scores(
    mask_groups: Sequence[MaskGroup],
    live: Sequence[Tensor],
    config: SparsifyConfig,
    step: int,
    moment_of: MomentOf | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """The keep scores and the grow scores; both come from each GPU in one copy, so that the CPU waits once.

    Args:
        mask_groups: All mask groups of the model.
        live: Their masks, bool `[rows, cols]` on the CPU.
        config: `keep_score`, `joint_hidden`, `grow_score` and `seed` are used.
        step: Current step: for error messages, and for random grow scores, which differ in each step.
        moment_of: As for `keep_scores`.

    Returns:
        Keep scores as from `keep_scores`, and grow scores of the same shapes. A matrix without a gradient has gradient
        scores of zero.

    Raises:
        NonFiniteGradientError: if a gradient is not finite.
        BlastError: if a weight is not finite.
    """
    weights, gradients = _weight_squares(mask_groups, config, moment_of), _gradient_squares(mask_groups, config)
    norms = _norms_on_cpu([*weights, *gradients])
    keep = _keep_scores(mask_groups, live, norms[: len(weights)], config, step)
    return keep, _grow_scores(mask_groups, live, norms[len(weights) :], config, step)


def random_scores(grid: tuple[int, int], *seeds: int | str) -> Tensor:
    """Random scores that depend on the seeds only, not on torch's global generator.

    Args:
        grid: Block rows and block columns.
        *seeds: The seed, the purpose, the step, the number of the mask group.

    Returns:
        Uniform scores in [0, 1) `[rows, cols]`, float32 on the CPU.
    """
    digest = hashlib.sha256("/".join(map(str, seeds)).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(grid, generator=generator)


def _weight_squares(
    mask_groups: Sequence[MaskGroup], config: SparsifyConfig, moment_of: MomentOf | None
) -> list[list[Tensor]]:
    """Sums of squares of the weights by block, for each matrix of each mask group; empty for random keep scores."""
    if config.keep_score == "random":
        return []
    moment_of = moment_of if config.keep_score == "second_moment" else None
    return [group.weight_squares(moment_of) for group in mask_groups]


def _gradient_squares(mask_groups: Sequence[MaskGroup], config: SparsifyConfig) -> list[list[Tensor]]:
    """The same of the dense gradients; empty for random grow scores."""
    return [] if config.grow_score == "random" else [group.gradient_squares() for group in mask_groups]


def _keep_scores(
    mask_groups: Sequence[MaskGroup],
    live: Sequence[Tensor],
    norms: Sequence[FloatArray],
    config: SparsifyConfig,
    step: int,
) -> list[Tensor]:
    if config.keep_score == "random":
        return [random_scores(group.grid, config.seed, "keep", group.index) for group in mask_groups]
    scores = [_score(*of, "weight", step) for of in zip(mask_groups, live, norms, strict=True)]
    if config.keep_score == "lamp":
        scores = [_lamp(score) for score in scores]
    if config.joint_hidden:
        return joint_scores([group.targets for group in mask_groups], config.block, scores)
    return scores


def _lamp(norms: Tensor) -> Tensor:
    """The share of each block in the norm of all blocks of its matrix that are not smaller (LAMP, arXiv 2010.07611).

    Within a matrix the order is that of the norms. Between matrices it does not depend on their scale: the largest
    block of each has 1.
    """
    squares, order = norms.double().square().flatten().sort(descending=True, stable=True)
    shares = torch.where(squares > 0, squares / squares.cumsum(0), squares).sqrt()
    return torch.empty_like(shares).scatter_(0, order, shares).view_as(norms).to(norms.dtype)


def _grow_scores(
    mask_groups: Sequence[MaskGroup],
    live: Sequence[Tensor],
    norms: Sequence[FloatArray],
    config: SparsifyConfig,
    step: int,
) -> list[Tensor]:
    if config.grow_score == "random":
        return [random_scores(group.grid, config.seed, "grow", step, group.index) for group in mask_groups]
    scores, errors = [], []
    for of in zip(mask_groups, live, norms, strict=True):
        try:
            scores.append(_score(*of, "gradient", step))
        except NonFiniteGradientError as error:
            errors.append(error)
    if errors:
        raise min(errors, key=lambda error: error.only_dead)
    return scores


def _norms_on_cpu(squares: Sequence[Sequence[Tensor]]) -> list[FloatArray]:
    """Norms `[blocks]` of each mask group from the sums of squares of its matrices, in one copy for each device."""
    norms: list[FloatArray] = [np.empty(0, dtype=np.float32)] * len(squares)
    for device in dict.fromkeys(members[0].device for members in squares):
        there = [place for place, members in enumerate(squares) if members[0].device == device]
        order, parts = [], []
        for count in sorted({len(squares[place]) for place in there}):
            same = [place for place in there if len(squares[place]) == count]
            each = [torch.cat([squares[place][n].flatten() for place in same]).sqrt_() for n in range(count)]
            order += same
            parts.append(_root_mean_square(each))
        flat = as_numpy(mean_over_ranks_(parts[0] if len(parts) == 1 else torch.cat(parts)))
        ends = np.cumsum([squares[place][0].numel() for place in order])
        for place, part in zip(order, np.split(flat, ends[:-1]), strict=True):
            norms[place] = part
    return norms


def _root_mean_square(norms: Sequence[Tensor]) -> Tensor:
    """Root mean square over several matrices; a single one is returned as it is."""
    return norms[0] if len(norms) == 1 else torch.stack([norm.square() for norm in norms]).mean(0).sqrt()


def _score(group: MaskGroup, live: Tensor, norms: FloatArray, what: str, step: int) -> Tensor:
    """The scores `[rows, cols]` of a mask group. In the sparse state `norms` has live blocks only; others score 0.

    Raises:
        BlastError: if a norm is NaN or infinite, because a ranking would then be arbitrary.
        NonFiniteGradientError: the same for a gradient.
    """
    if norms.size != group.blocks:
        whole = np.zeros(group.grid, dtype=np.float32)
        whole[live.numpy()] = norms
        norms = whole
    wrong = ~np.isfinite(norms)
    if wrong.any():
        message = (
            f"at step {step} the {what} of {group.name} is NaN or infinite in {int(np.count_nonzero(wrong))} of "
            f"{norms.size} blocks, so no mask can be chosen; the training has diverged: lower the learning rate, or "
            "look for the first NaN in the loss."
        )
        if what == "gradient":
            raise NonFiniteGradientError(message, only_dead=not (wrong.reshape(group.grid) & live.numpy()).any())
        raise BlastError(message)
    return torch.from_numpy(norms.reshape(group.grid))
