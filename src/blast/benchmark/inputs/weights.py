"""Weights for timing kernels, in enough sets that no call finds its weights in the cache."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from blast_kernels.common.dense import apply_activation, to_dense
from blast_kernels.common.quantize import dequantize, quantize_blocks, quantize_pairs
from blast_kernels.mlp_inference.row_lists import drop_columns, gated_row_list, live_hidden_rows, plain_row_list
from torch import Tensor
from torch.nn import functional as F

from blast.benchmark.inputs.mlp import MlpMasks, MlpSize

# All sets together are at least `PAST_CACHE` times as large as the cache, but there are at most `MOST_SETS`.
PAST_CACHE = 3
MOST_SETS = 512


class Csr(NamedTuple):
    """A block-CSR matrix (see `blast_kernels.linear.reference`); `cols` is its number of block columns."""

    values: Tensor
    offsets: Tensor
    indices: Tensor
    cols: int

    def dense(self) -> Tensor:
        """The dense matrix `[out, in]`; blocks that are not live are zero."""
        return to_dense(self.values, self.offsets, self.indices, self.cols)


class Weights(NamedTuple):
    """One set of sparse weights.

    Attributes:
        matrices: Gate (if any), up and down.
        biases: Of up and of down; None without biases.
        gate_up: Blocks of the gate, or of the up projection if there is no gate.
        up: Blocks of the up projection if there is a gate.
        gate_up_row_list: Row list of the gate-up product, int32.
        down: Blocks of the down projection.
        down_row_list: Row list of the down projection, int32.
        gate: `none`, `untied` or `tied` (gate and up share a mask).
        gate_up_scales: A scale for each fp8 block of `gate_up`; None without fp8.
        up_scales: Likewise for `up`; None if gate and up share a mask, because then they share the scales.
        down_scales: Likewise for `down`.
        down_blocks: How many blocks `down_row_list` names, if it skips some; None if not.
    """

    matrices: tuple[Csr, ...]
    biases: tuple[Tensor | None, Tensor | None]
    gate_up: Tensor
    up: Tensor | None
    gate_up_row_list: Tensor
    down: Tensor
    down_row_list: Tensor
    gate: str
    gate_up_scales: Tensor | None = None
    up_scales: Tensor | None = None
    down_scales: Tensor | None = None
    down_blocks: int | None = None


def sets_needed(bytes_of_one: float, cache: int) -> int:
    """How many sets to rotate so that a call finds none of its weights in a cache of `cache` bytes."""
    return min(MOST_SETS, max(1, math.ceil(PAST_CACHE * cache / max(1.0, bytes_of_one))))


def sparse_weights(size: MlpSize, masks: MlpMasks, tied: bool, generator: torch.Generator) -> Weights:
    """Random values for the live blocks of masks, scaled so that outputs stay near one."""
    parts = [masks.up, masks.down] if masks.gate is None else [masks.gate, masks.up, masks.down]
    blocks = [size.block] * (len(parts) - 1) + [size.down_block]
    matrices = tuple(_matrix(*pair, size.dtype, generator) for pair in zip(parts, blocks, strict=True))
    biases = _biases(size, generator)
    gate = "none" if masks.gate is None else "tied" if tied else "untied"
    *parts, down = matrices
    up = None if gate == "none" else parts[1].values
    down_row_list = plain_row_list(down.offsets, down.indices)
    return Weights(
        matrices, biases, parts[0].values, up, _gate_up_row_list(parts, gate), down.values, down_row_list, gate
    )  # fmt: skip


def without_dead(weights: Weights) -> tuple[Weights, float]:
    """The same MLP without dead hidden blocks, and the share of hidden blocks that were dead.

    A hidden block is dead if it is always zero or if the down projection does not read it. If the matrices split the
    hidden activations differently, nothing is removed.
    """
    *gate_up, down = weights.matrices
    if gate_up[0].values.shape[1] != down.values.shape[2]:
        return weights, 0.0
    if weights.gate == "none":
        live = torch.zeros(gate_up[0].offsets.numel() - 1, dtype=torch.bool, device=down.values.device)
        live[down.indices.long()] = True
    else:
        live = live_hidden_rows(gate_up[0].offsets, gate_up[-1].offsets, down.indices)
    offsets, indices, places = drop_columns(down.offsets, down.indices, live)
    small = weights._replace(
        gate_up_row_list=_gate_up_row_list(gate_up, weights.gate, live),
        down_row_list=plain_row_list(offsets, indices, places=places),
        down_blocks=places.numel(),
    )
    return small, 1 - live.float().mean().item()


def in_fp8(weights: Weights) -> Weights:
    """The same MLP with fp8 weights for the fused kernels; `matrices` keeps the unquantised values."""
    up, up_scales = None, None
    if weights.gate == "tied":
        gate_up, up, gate_up_scales = quantize_pairs(weights.gate_up, weights.up)
    else:
        gate_up, gate_up_scales = quantize_blocks(weights.gate_up)
        if weights.gate == "untied":
            up, up_scales = quantize_blocks(weights.up)
    down, down_scales = quantize_blocks(weights.down)
    return weights._replace(
        gate_up=gate_up, up=up, down=down, gate_up_scales=gate_up_scales, up_scales=up_scales, down_scales=down_scales
    )  # fmt: skip


def from_fp8(weights: Weights) -> Weights:
    """Dequantizes fp8 weights, exactly, to the dtype they were made from; `matrices` gets the same values."""
    dtype = weights.matrices[0].values.dtype
    gate_up = dequantize(weights.gate_up, weights.gate_up_scales, dtype)
    down = dequantize(weights.down, weights.down_scales, dtype)
    up = None
    if weights.up is not None:
        up = dequantize(weights.up, weights.gate_up_scales if weights.gate == "tied" else weights.up_scales, dtype)
    parts = [gate_up, down] if up is None else [gate_up, up, down]
    matrices = zip(weights.matrices, parts, strict=True)
    return weights._replace(
        matrices=tuple(matrix._replace(values=values) for matrix, values in matrices),
        gate_up=gate_up, up=up, down=down, gate_up_scales=None, up_scales=None, down_scales=None,
    )  # fmt: skip


def copied(weights: Weights) -> Weights:
    """The same weights copied to other memory, so that the cache does not hold them."""
    read = ("gate_up", "up", "gate_up_row_list", "down", "down_row_list", "gate_up_scales", "up_scales", "down_scales")
    copies = {name: tensor.clone() for name in read if (tensor := getattr(weights, name)) is not None}
    return weights._replace(**copies)


def dense_weights(size: MlpSize, generator: torch.Generator) -> tuple[list[Tensor], tuple]:
    """Random dense matrices (gate if any, up, down) without masks, and biases, for the dense baseline."""
    shapes = [(size.ffn, size.hidden)] * (2 if size.gated else 1) + [(size.hidden, size.ffn)]
    matrices = []
    for out, into in shapes:
        matrix = torch.empty(out, into, device=generator.device, dtype=size.dtype)
        matrices.append(matrix.normal_(0, into**-0.5, generator=generator))
    return matrices, _biases(size, generator)


def dense_mlp(x: Tensor, matrices: Sequence[Tensor], biases: tuple, activation: str) -> Tensor:
    """The MLP in plain PyTorch: `[tokens, hidden]` to `[tokens, hidden]`."""
    *gate, up, down = matrices
    hidden = F.linear(x, up, biases[0])
    hidden = (
        apply_activation(F.linear(x, gate[0]), activation) * hidden if gate else apply_activation(hidden, activation)
    )
    return F.linear(hidden, down, biases[1])


def expected_output(x: Tensor, weights: Weights, activation: str) -> Tensor:
    """The output of the MLP, computed in float32 throughout; only one matrix at a time is dense."""
    x = x.float()
    *gate_up, down = weights.matrices
    first, second = (None if bias is None else bias.float() for bias in weights.biases)
    products = [x @ matrix.dense().float().t() for matrix in gate_up]
    if first is not None:
        products[-1] += first
    hidden = apply_activation(products[0], activation)
    if len(products) == 2:
        hidden = hidden * products[1]
    out = hidden @ down.dense().float().t()
    return out if second is None else out + second


def _biases(size: MlpSize, generator: torch.Generator) -> tuple[Tensor | None, Tensor | None]:
    if not size.bias:
        return None, None
    first, second = (
        torch.empty(width, device=generator.device, dtype=size.dtype).normal_(0, 0.1, generator=generator)
        for width in (size.ffn, size.hidden)
    )
    return first, second


def _matrix(mask: Tensor, block: tuple[int, int], dtype: torch.dtype, generator: torch.Generator) -> Csr:
    b_out, b_in = block
    offsets = torch.zeros(mask.shape[0] + 1, dtype=torch.int32, device=mask.device)
    offsets[1:] = mask.sum(1).cumsum(0)
    indices = mask.nonzero()[:, 1].int()
    spread = max(1.0, indices.numel() / mask.shape[0] * b_in) ** -0.5
    values = torch.empty(indices.numel(), b_out, b_in, device=mask.device, dtype=dtype)
    return Csr(values.normal_(0, spread, generator=generator), offsets, indices, mask.shape[1])


def _gate_up_row_list(matrices: Sequence[Csr], gate: str, live: Tensor | None = None) -> Tensor:
    """Row list of the gate-up product."""
    first, last = matrices[0], matrices[-1]
    if gate == "untied":
        return gated_row_list(first.offsets, first.indices, last.offsets, last.indices, live)
    return plain_row_list(first.offsets, first.indices, live)
