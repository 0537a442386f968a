"""The budget of each pruning scope, and its spread over the layers: `SparsifyConfig.layer_spread`.

OWL (arXiv 2310.05175) gives a layer with more outliers a lower sparsity. The layers lie within the target sparsity ±
`layer_spread`, and their mean is the target.

- One-shot pruning with a calibration counts outliers as OWL does: weights times the norm of their inputs, above a fixed
  multiple of the mean of the layer. The layer that deviates most lies at `spread`. (OWL scales to a range of
  `2 * spread` and then shifts, so that a layer may lie further than `spread` from the target.)
- All other pruning needs no activations, and counts live blocks. Norms of blocks vary little, so that a fixed multiple
  may find none: the outliers are the tenth of all live blocks that exceed the median of their matrix most. A layer
  without outliers lies at `spread` at most, so chance spreads little. Outliers are counted anew at each mask update: a
  resume needs nothing saved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from blast.model.target import Target
from blast.sparsity.config import SparsifyConfig
from blast.sparsity.mask_groups import MaskGroup
from blast.sparsity.selection import as_numpy, block_budget

# A weight times its input is an outlier above this multiple of the mean of its layer (OWL's M).
WEIGHT_OUTLIER = 5.0
# The share of live blocks that are outliers.
BLOCK_OUTLIERS = 0.1

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
    calibrated = outliers is not None
    if outliers is None:
        outliers = block_outliers([group for scope in scopes for group in scope], live, scores)
    sizes = np.array([sum(group.blocks * group.cost for group in scope) for scope in scopes])
    present = [sum(int(np.count_nonzero(as_numpy(live[g.index]))) * g.cost for g in scope) for scope in scopes]
    # Early in a schedule the target is below the spread, and no layer can have a negative sparsity.
    density, spread = 1 - sparsity, min(config.layer_spread, sparsity)
    shares = np.array([outliers[layer_of_group(scope[0])] for scope in scopes])
    return spread_budgets(
        total=sum(plain),
        densities=spread_densities(shares, sizes, density, spread, stretch=calibrated),
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
    """The share of live blocks of each layer that are outliers: their scores exceed the median of their matrix most.

    Args:
        mask_groups: All mask groups of the model.
        live: Their masks, on the CPU.
        scores: Their keep scores, on the CPU. Each is divided by the median of those of its matrix that are not zero.
    """
    layers = {layer: number for number, layer in enumerate(dict.fromkeys(map(layer_of_group, mask_groups)))}
    numbers = np.array([layers[layer_of_group(group)] for group in mask_groups])
    costs = np.array([group.cost for group in mask_groups])
    values = [as_numpy(scores[group.index])[as_numpy(live[group.index])] for group in mask_groups]
    relative = [value / np.median(value[value > 0]) if value.any() else value for value in values]
    owners = np.repeat(np.arange(len(values)), [value.size for value in values])
    order = np.argsort(-np.concatenate(relative), kind="stable")
    spent = costs[owners[order]].cumsum()
    best = owners[order[spent <= BLOCK_OUTLIERS * spent[-1]]]
    found = np.bincount(numbers[best], weights=costs[best], minlength=len(layers))
    whole = np.bincount(numbers[owners], weights=costs[owners], minlength=len(layers))
    return {layer: float(found[number] / max(whole[number], 1)) for layer, number in layers.items()}


def weight_outliers(mask_groups: Sequence[MaskGroup], moments: Mapping[str, Tensor]) -> dict[object, float]:
    """The layer outlier distribution of OWL: how many `|w| * norm of its input` lie above a multiple of the mean.

    Args:
        mask_groups: All mask groups of the model, dense.
        moments: By matrix, the mean of `x²` of its inputs `[in]`, or of `x xᵀ` `[in, in]`.

    Returns:
        For each layer the share of its weights that lie above `WEIGHT_OUTLIER` times the mean over the layer.
    """
    layers: dict[object, list[Target]] = {}
    for group in mask_groups:
        layers.setdefault(layer_of_group(group), []).extend(group.matrices)
    shares = {}
    for layer, targets in layers.items():
        parts = [target.weight.float().abs() * _input_norms(moments[target.name]) for target in targets]
        number = sum(part.numel() for part in parts)
        limit = WEIGHT_OUTLIER * sum(float(part.double().sum()) for part in parts) / number
        shares[layer] = sum(int((part > limit).sum()) for part in parts) / number
    return shares


def _input_norms(moment: Tensor) -> Tensor:
    """The root mean square of each input, from `mean(x²)` or `mean(x xᵀ)`."""
    return (moment.diagonal() if moment.dim() == 2 else moment).sqrt()


def spread_densities(
    shares: Floats, sizes: npt.NDArray[np.int64], density: float, spread: float, stretch: bool = False
) -> Floats:
    """Densities within `density ± spread` that rise linearly with the shares of outliers.

    Their mean, weighted by `sizes`, is `density`. No outliers mean `density - spread`, and twice the mean share
    `density + spread`; if a share is larger, all deviate less. With `stretch` they deviate as far as `spread` allows.
    """
    mean = np.average(shares, weights=sizes)
    # What rounding leaves of equal shares must not be stretched.
    deviation = np.where(np.abs(shares - mean) > 1e-12, shares - mean, 0.0)
    largest = max(float(np.abs(deviation).max()), 0.0 if stretch else float(mean))
    return density + (spread * deviation / largest if largest else 0 * deviation)


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
