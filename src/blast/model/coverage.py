"""Which MLP weights of a model stay dense, and what share of all its MLP weights they are."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from torch import nn

from blast.model.discovery import find_mlps
from blast.model.experts import unsupported_experts
from blast.model.target import Target

# Components of a parameter's name that say that it belongs to an MLP (`feed_forward`, `block_sparse_moe`, `experts`).
MLP_PARTS = re.compile(r"(?:^|_)(mlp|ffn|ffw|ff|feed_?forward|moe|experts?)\d*(?:_|$)")
# Smaller shares (the router of a mixture of experts) are in the report, without a warning.
WORTH_A_WARNING = 0.01
# Names in a warning.
SHOWN = 5


class DenseMlpWeights(NamedTuple):
    """The MLP weights of a model that are not pruned.

    Attributes:
        share: Their share of all MLP weights, in elements; biases do not count.
        names: Their names, once for all layers: `model.layers.*.mlp.experts.down_proj`.
    """

    share: float
    names: list[str]


def dense_mlp_weights(model: nn.Module, targets: Iterable[Target]) -> DenseMlpWeights:
    """The MLP weights of a model that no target holds.

    A parameter is an MLP weight if it has two or more dimensions and belongs to an MLP, by structure or by its name.

    Args:
        model: A dense model.
        targets: The matrices that are pruned.
    """
    held: dict[int, int] = {}
    for target in targets:
        held[id(target.parameter)] = held.get(id(target.parameter), 0) + math.prod(target.shape)
    total, dense = 0, 0
    names: dict[str, None] = {}
    for name, parameter in _mlp_parameters(model):
        elements = parameter.numel()
        left = max(0, elements - held.get(id(parameter), 0))
        total, dense = total + elements, dense + left
        if left:
            names[re.sub(r"(?<![^.])\d+(?=\.)", "*", name)] = None
    return DenseMlpWeights(dense / total if total else 0.0, list(names))


def warning_about(dense: DenseMlpWeights, model: nn.Module) -> str | None:
    """The sentence that tells what stays dense and why; None if it is not worth a warning."""
    if dense.share < WORTH_A_WARNING:
        return None
    names = ", ".join(f"'{name}'" for name in dense.names[:SHOWN])
    names += f" and {len(dense.names) - SHOWN} more" if len(dense.names) > SHOWN else ""
    for name, reason in unsupported_experts(model).items():
        return (
            f"{dense.share:.0%} of the MLP weights of this model stay dense: {names}; "
            f"the experts of '{name}' cannot be pruned because {reason}."
        )
    return (
        f"{dense.share:.0%} of the MLP weights of this model stay dense, because they are not found by structure: "
        f"{names}; name layers among them in the targets to prune them too."
    )


def _mlp_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The MLP weights with their names, each once."""
    matrices = {id(target.module) for mlp in find_mlps(model) for target in mlp.targets}
    seen: set[int] = set()
    for path, module in model.named_modules():
        for leaf, parameter in module._parameters.items():
            # The biases of all experts are one matrix.
            if parameter is None or parameter.dim() < 2 or leaf.endswith("_bias") or id(parameter) in seen:
                continue
            name = f"{path}.{leaf}" if path else leaf
            if id(module) in matrices or any(MLP_PARTS.search(part.lower()) for part in name.split(".")):
                seen.add(id(parameter))
                yield name, parameter
