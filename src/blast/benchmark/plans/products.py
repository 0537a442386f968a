"""The two products of an MLP, each alone, with enough sets of weights that no call finds its own in the cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from blast_kernels.common.dense import apply_activation
from blast_kernels.mlp_inference import launch
from blast_kernels.mlp_inference.heuristics import KernelConfig
from torch import Tensor

from blast.benchmark.inputs.masks import random_masks
from blast.benchmark.inputs.mlp import MlpSize
from blast.benchmark.inputs.weights import Csr, sets_needed, sparse_weights

# Several masks, since the time of one mask depends on its longest row.
MASKS = 4
# More sets of a small model would take too long to launch; its weights then stay in the cache.
MOST_SETS = 128


class Product(NamedTuple):
    """One product of an MLP: gate-up or down.

    Attributes:
        part: `front` (gate and up, or up alone) or `down`; records store these words.
        gate: `none`, `untied` or `tied`.
        activation: Of the product; `none` for the down projection.
        sets: Of each set: blocks, blocks of the up projection (None without a gate), row list.
        bias: `[out_features]` or None.
        matrices: The matrices of the first set: gate (if any) and up, or down.
        in_features: Columns.
        out_features: Rows.
    """

    part: str
    gate: str
    activation: str
    sets: list[tuple[Tensor, Tensor | None, Tensor]]
    bias: Tensor | None
    matrices: tuple[Csr, ...]
    in_features: int
    out_features: int

    @property
    def block(self) -> tuple[int, int]:
        """`[out, in]` of a block."""
        _, b_out, b_in = self.matrices[0].values.shape
        return b_out, b_in

    @property
    def rows(self) -> int:
        """Block rows that are computed."""
        return self.sets[0][2].shape[0]

    @property
    def row_blocks(self) -> float:
        """Mean stored blocks of a block row."""
        return self.blocks / self.rows

    @property
    def blocks(self) -> int:
        """Blocks that its row list names: those of gate and up together if their masks are separate."""
        values, up, _ = self.sets[0]
        return values.shape[0] + (up.shape[0] if self.gate == "untied" and up is not None else 0)

    def input(self, tokens: int, generator: torch.Generator) -> Tensor:
        """Random activations `[tokens, in_features]`."""
        values = self.sets[0][0]
        x = torch.empty(tokens, self.in_features, device=values.device, dtype=values.dtype)
        return x.normal_(generator=generator)

    def expected(self, x: Tensor) -> Tensor:
        """The output of the first set for `x [rows, in_features]`, computed in float32 throughout."""
        products = [x.float() @ matrix.dense().float().t() for matrix in self.matrices]
        if self.bias is not None:
            products[-1] += self.bias.float()
        out = apply_activation(products[0], self.activation)
        return out * products[1] if len(products) == 2 else out

    def call(self, config: KernelConfig, x: Tensor, y: Tensor) -> Callable[[int], Tensor]:
        """Gives a function that runs the set of a number with a config and writes `y`.

        The counters of a split down projection are zeroed once a round, since in an MLP the gate-up kernel does it.
        The counters of a split gate-up product cost a launch, as in an MLP.
        """
        counters = None
        if self.part == "down" and config.split > 1:
            needed = launch.counters_needed(config, x.shape[0], self.rows, self.block[0])
            # The counters of each set start at a multiple of 128 bytes, as a separate tensor would.
            counters = torch.zeros(len(self.sets), -(-needed // 32) * 32, dtype=torch.int32, device=x.device)

        def run(number: int) -> Tensor:
            values, up, row_list = self.sets[number]
            chain = launch.Chain()
            if counters is not None:
                if number == 0:
                    counters.zero_()
                chain = launch.Chain(counters=counters[number])
            launch.product(x, values, row_list, self.bias, y, self.activation, self.gate, config, chain=chain, up=up)
            return y

        return run


def products_of(size: MlpSize, sparsity: float, tied: bool, generator: torch.Generator, cache: int) -> list[Product]:
    """The gate-up product and the down projection of an MLP with uniform random masks.

    Args:
        size: The MLP.
        sparsity: Share of empty blocks.
        tied: Whether gate and up share a mask.
        generator: Its state decides masks and weights; they are on its device.
        cache: Size of the cache in bytes.
    """
    arguments = ("uniform", size.hidden, size.ffn, size.gated, tied, sparsity)
    drawn = [
        sparse_weights(size, random_masks(*arguments, size.block, generator, size.down_block), tied, generator)
        for _ in range(MASKS)
    ]
    first, products = drawn[0], []
    for part in ("front", "down"):
        is_gate_up = part == "front"
        sets = [(w.gate_up, w.up, w.gate_up_row_list) if is_gate_up else (w.down, None, w.down_row_list) for w in drawn]
        products.append(
            Product(
                part,
                first.gate if is_gate_up else "none",
                size.activation if is_gate_up else "none",
                _rotated(sets, cache),
                first.biases[0 if is_gate_up else 1],
                first.matrices[:-1] if is_gate_up else first.matrices[-1:],
                size.hidden if is_gate_up else size.ffn,
                size.ffn if is_gate_up else size.hidden,
            )
        )
    return products


def _rotated(
    sets: list[tuple[Tensor, Tensor | None, Tensor]], cache: int
) -> list[tuple[Tensor, Tensor | None, Tensor]]:
    """As many sets as the cache requires; repeated sets are copies in other memory."""
    values, up, _ = sets[0]
    count = min(MOST_SETS, sets_needed(values.nbytes + (0 if up is None else up.nbytes), cache))
    again = [sets[number % len(sets)] for number in range(len(sets), count)]
    copies = [(values.clone(), None if up is None else up.clone(), row_list.clone()) for values, up, row_list in again]
    return [*sets[:count], *copies]
