"""The budget of each pruning scope, and its spread over the layers: `SparsifyConfig.layer_spread`.

OWL (arXiv 2310.05175) gives a layer with more outliers a lower sparsity. An outlier is a value above a multiple of the
mean of its layer. The layers lie within the target sparsity ± `layer_spread`, and their mean is the target.

- One-shot pruning with a calibration counts outliers as OWL does: weights times the norm of their inputs, against the
  mean of the layer.
- All other pruning needs no activations: it counts live blocks by their keep score, against the mean of their matrix.
  It counts anew at each mask update, so there is nothing to save for a resume.

OWL scales the shares of outliers to a range of `2 * spread`, and shifts them so that their mean is right. A layer may
then lie further than `spread` from the target. Here the layer that deviates most lies at `spread`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from blast.sparsity.config import SparsifyConfig
from blast.sparsity.mask_groups import MaskGroup
from blast.sparsity.selection import as_numpy, block_budget

# A weight times its input is an outlier above this multiple of the mean of its layer (OWL's M).
WEIGHT_OUTLIER = 5.0
# A block is one above this multiple of the mean of its matrix. The norm of a block varies less than a single weight:
# no block of fresh weights is an outlier, so that chance spreads nothing.
BLOCK_OUTLIER = 1.5

Floats = npt.NDArray[np.float64]


def scope_budgets(
    scopes: Sequence[Sequence[MaskGroup]],
    config: SparsifyConfig,
    sparsity: float,
    live: Sequence[Tensor],
    scores: Sequence[Tensor],
    outliers: Mapping[object, float] | None = None,
    growing: Sequence[bool] | None = None,
) -> list[int]:
    """The weight blocks that each pruning scope may keep.

    With `layer_spread` the budgets have the same sum as without. Each lies within `sparsity ± layer_spread`, up to
    whole blocks, unless too few blocks of a scope are live.

    Args:
        scopes: All pruning scopes of the model.
        config: `layer_spread` is used.
        sparsity: Target share of empty blocks of the whole.
        live: The present mask of each mask group, on the CPU.
        scores: The keep score of each mask group, on the CPU.
        outliers: The share of outliers by layer (see `layer_of_group`); by default that of the blocks.
        growing: For each scope, whether it may get more blocks than are live in it; by default none.

    Returns:
        A budget for each scope: at least one block for each matrix.
    """
    plain = [block_budget([g.blocks for g in scope], [g.cost for g in scope], sparsity) for scope in scopes]
    if not config.layer_spread:
        return plain
    if outliers is None:
        outliers = block_outliers([group for scope in scopes for group in scope], live, scores)
    sizes = np.array([sum(group.blocks * group.cost for group in scope) for scope in scopes])
    present = [sum(int(np.count_nonzero(as_numpy(live[g.index]))) * g.cost for g in scope) for scope in scopes]
    # Early in a schedule the target is below the spread, and no layer can have a negative sparsity.
    density, spread = 1 - sparsity, min(config.layer_spread, sparsity)
    shares = np.array([outliers[layer_of_group(scope[0])] for scope in scopes])
    return spread_budgets(
        total=sum(plain),
        densities=spread_densities(shares, sizes, density, spread),
        sizes=sizes,
        bounds=(density - spread, density + spread),
        least=np.array([sum(group.cost for group in scope) for scope in scopes]),
        most=np.where(growing or False, sizes, present),
        steps=np.array([np.gcd.reduce([group.cost for group in scope]) for scope in scopes]),
    )


def layer_of_group(group: MaskGroup) -> object:
    """What stands for the layer of a mask group; a matrix outside any layer is one of its own."""
    path = group.targets[0].layer_path
    return group.index if path is None else path


def block_outliers(
    mask_groups: Sequence[MaskGroup], live: Sequence[Tensor], scores: Sequence[Tensor]
) -> dict[object, float]:
    """The share of live blocks of each layer whose score is above `BLOCK_OUTLIER` times the mean of their matrix."""
    counts: dict[object, npt.NDArray[np.int64]] = {}
    for group in mask_groups:
        values = as_numpy(scores[group.index])[as_numpy(live[group.index])]
        above = np.count_nonzero(values > BLOCK_OUTLIER * values.mean(dtype=np.float64)) if values.size else 0
        layer = layer_of_group(group)
        counts[layer] = counts.get(layer, np.zeros(2, dtype=np.int64)) + group.cost * np.array([above, values.size])
    return {layer: above / max(1, number) for layer, (above, number) in counts.items()}


def weight_outliers(mask_groups: Sequence[MaskGroup], moments: Mapping[str, Tensor]) -> dict[object, float]:
    """The layer outlier distribution of OWL: how many `|w| * norm of its input` lie above a multiple of the mean.

    Args:
        mask_groups: All mask groups of the model, dense.
        moments: By matrix, the mean of `x²` of its inputs `[in]`, or of `x xᵀ` `[in, in]`.

    Returns:
        For each layer the share of its weights that lie above `WEIGHT_OUTLIER` times the mean over the layer.
    """
    layers: dict[object, list[Tensor]] = {}
    for group in mask_groups:
        for target in group.matrices:
            moment = moments[target.name]
            square = moment.diagonal() if moment.dim() == 2 else moment
            layers.setdefault(layer_of_group(group), []).append(target.weight.float().abs() * square.sqrt())
    shares = {}
    for layer, parts in layers.items():
        number = sum(part.numel() for part in parts)
        limit = WEIGHT_OUTLIER * sum(part.double().sum() for part in parts) / number
        shares[layer] = float(sum((part > limit).sum() for part in parts)) / number
    return shares


def spread_densities(shares: Floats, sizes: npt.NDArray[np.int64], density: float, spread: float) -> Floats:
    """Densities within `density ± spread` that rise linearly with the shares of outliers.

    Their mean, weighted by `sizes`, is `density`. Equal shares give equal densities.
    """
    deviation = shares - np.average(shares, weights=sizes)
    largest = np.abs(deviation).max()
    return density + spread * deviation / largest if largest > 1e-12 else np.full(len(shares), density)


def spread_budgets(
    total: int,
    densities: Floats,
    sizes: npt.NDArray[np.int64],
    bounds: tuple[float, float],
    least: npt.NDArray[np.int64],
    most: npt.NDArray[np.int64],
    steps: npt.NDArray[np.int64],
) -> list[int]:
    """Whole numbers of weight blocks near the wanted densities, with an exact sum.

    What `least` and `most` take from one scope, the others get in equal shares of their size.

    Args:
        total: The sum.
        densities: Wanted share of live blocks of each scope.
        sizes: Weight blocks of each scope.
        bounds: Least and largest density. They are exceeded, by whole blocks and where the sum needs it.
        least: Fewest weight blocks of each scope.
        most: Largest number of each scope; not below `least`.
        steps: Each budget is a multiple of it. `least` and `most` are multiples too.

    Returns:
        The budgets. Their sum is `total`, unless `least`, `most` or `steps` forbid it.
    """
    low, high = np.clip(bounds[0] * sizes, least, most), np.clip(bounds[1] * sizes, least, most)
    if not low.sum() <= total <= high.sum():
        low, high = least.astype(np.float64), most.astype(np.float64)
    wanted = _shifted(densities * sizes, sizes, low, high, total)
    # The small addition keeps what is a whole number but for rounding.
    budgets = np.maximum(np.floor(wanted / steps + 1e-9).astype(np.int64) * steps, least)
    _settle(budgets, total, wanted, least, most, steps)
    return [int(budget) for budget in budgets]


def _settle(
    budgets: npt.NDArray[np.int64],
    total: int,
    wanted: Floats,
    least: npt.NDArray[np.int64],
    most: npt.NDArray[np.int64],
    steps: npt.NDArray[np.int64],
) -> None:
    """Changes rounded budgets in place, so that their sum is `total`; those with the largest rest get a step first."""
    order = np.argsort(-(wanted - budgets) / steps, kind="stable")
    for place in order[::-1]:
        if budgets.sum() > total and budgets[place] - steps[place] >= least[place]:
            budgets[place] -= steps[place]
    left = total - int(budgets.sum())
    for place in order:
        if 0 < steps[place] <= left and budgets[place] + steps[place] <= most[place]:
            budgets[place] += steps[place]
            left -= int(steps[place])
    if left <= 0:
        return
    # What is left is less than one step of every scope with room: a scope of smaller steps gives the rest of a step.
    for place in np.flatnonzero(budgets + steps <= most):
        missing = int(steps[place]) - left
        givers = np.flatnonzero((steps == 1) & (budgets - missing >= least))
        if givers.size:
            budgets[place] += steps[place]
            budgets[givers[0]] -= missing
            return


def _shifted(wanted: Floats, sizes: npt.NDArray[np.int64], low: Floats, high: Floats, total: int) -> Floats:
    """The wanted numbers, all densities shifted alike and cut to their bounds, so that the sum is `total`."""
    below, above = -1.0, 1.0
    for _ in range(60):
        middle = (below + above) / 2
        enough = np.clip(wanted + middle * sizes, low, high).sum() >= total
        below, above = (below, middle) if enough else (middle, above)
    return np.clip(wanted + above * sizes, low, high)
