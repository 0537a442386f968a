"""What pruning one part of a model alone costs, untrained: the measure behind `blast scan`, and behind dense layers."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from blast.evaluation.loss import chunk_losses
from blast.experiment.own_model.step_time import faster_dtype
from blast.sparsity.config import SparsifyConfig
from blast.sparsity.one_shot import apply_masks_, one_shot_masks

if TYPE_CHECKING:
    from blast.block_sparse.blocks import BlockShape
    from blast.datasets._text.language_data import LanguageData
    from blast.model.target import Target

LAYERS, KINDS = "layers", "kinds"
# A layer should stay dense if pruning it costs so many times what pruning the median layer costs.
OUTLIER = 3.0
# At most this share of the layers is recommended to stay dense.
MOST_DENSE = 0.25


def parts_of(matrices: Sequence[Target]) -> Iterator[tuple[str, str, list[Target]]]:
    """Each layer, and each kind of matrix in all layers, with its matrices."""
    for layer in dict.fromkeys(target.layer for target in matrices if target.layer is not None):
        yield LAYERS, str(layer), [target for target in matrices if target.layer == layer]
    for role in dict.fromkeys(target.role for target in matrices):
        yield KINDS, role, [target for target in matrices if target.role == role]


@contextmanager
def pruned_once(model: nn.Module, chosen: Sequence[Target], block: BlockShape, sparsity: float) -> Iterator[None]:
    """A context in which some matrices are pruned once; their weights come back after it."""
    names = tuple(target.name for target in chosen)
    config = SparsifyConfig.from_method("one_shot", sparsity=sparsity, block=block, steps=1, targets=names)
    parameters = {id(target.parameter): target.parameter for target in chosen}.values()
    kept = [parameter.detach().clone() for parameter in parameters]
    try:
        apply_masks_(model, one_shot_masks(model, config), block)
        yield
    finally:
        with torch.no_grad():
            for parameter, before in zip(parameters, kept, strict=True):
                parameter.copy_(before)


@dataclass(frozen=True)
class Sample:
    """Some sequences of a text, on which losses are compared.

    Attributes:
        chunks: Token ids `[sequences, length + 1]`.
        bytes: Bytes that the predicted tokens stand for.
        dtype: Of the products: the one in which the model reads them faster here.
        device: Of the model.
        seconds: How long one reading takes.
    """

    chunks: Tensor
    bytes: int
    dtype: str
    device: torch.device
    seconds: float

    @classmethod
    def of(cls, model: nn.Module, data: LanguageData, length: int, sequences: int, device: torch.device) -> Sample:
        """The first sequences of the held-out part, spread evenly; measures how fast the model reads them."""
        chunks = data.validation_chunks(length, sequences)
        dtype = faster_dtype(lambda dtype: _nats(model, chunks[:1], dtype, device), device)
        start = time.perf_counter()
        _nats(model, chunks[:1], dtype, device)
        seconds = (time.perf_counter() - start) * len(chunks)
        return cls(chunks, sum(data.bytes_of(chunk[1:]) for chunk in chunks), dtype, device, seconds)

    def bits(self, model: nn.Module) -> float:
        """Bits a byte of a model."""
        return _nats(model, self.chunks, self.dtype, self.device) / (math.log(2) * self.bytes)


def _nats(model: nn.Module, chunks: Tensor, dtype: str, device: torch.device) -> float:
    """Cross-entropy of all predicted tokens, summed."""
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        return sum(chunk_losses(model, chunks, 4, device))


def layer_costs(
    model: nn.Module, matrices: Sequence[Target], block: BlockShape, sparsity: float, sample: Sample
) -> Iterator[tuple[str, dict[str, float]]]:
    """Each layer with, by sparsity, the rise in bits a byte if it alone is pruned once; see `recommended`."""
    dense = sample.bits(model)
    for group, part, chosen in parts_of(matrices):
        if group == LAYERS:
            with pruned_once(model, chosen, block, sparsity):
                rise = sample.bits(model) - dense
            yield part, {f"{sparsity:g}": rise}


def recommended(layers: Mapping[str, Mapping[str, float]]) -> list[int]:
    """Layers that should stay dense: at the highest sparsity they cost more than three times the median layer.

    At most a quarter of the layers, the most expensive ones.

    Example:
        >>> recommended({"0": {"0.5": 0.9}, "1": {"0.5": 0.1}, "2": {"0.5": 0.1}, "3": {"0.5": 0.2}})
        [0]
    """
    if len(layers) < 3:
        return []
    cost = {int(layer): rises[max(rises, key=float)] for layer, rises in layers.items()}
    limit = OUTLIER * max(statistics.median(cost.values()), 0.0)
    worst = sorted((layer for layer in cost if cost[layer] > limit), key=lambda layer: -cost[layer])
    return sorted(worst[: max(1, int(MOST_DENSE * len(cost)))])
