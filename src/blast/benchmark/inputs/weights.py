"""Weights to time kernels with: enough sets that each call finds its weights outside the cache."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from blast_kernels.common.dense import apply_activation, to_dense
from blast_kernels.common.quantize import dequantize, quantize_blocks
from blast_kernels.mlp_inference.row_lists import (
    drop_columns,
    gated_records,
    live_hidden_rows,
    pack_tied,
    plain_records,
    unpack_tied,
)
from torch import Tensor
from torch.nn import functional as F

from blast.benchmark.inputs.mlp import MlpMasks, MlpSize

# Weights in rotation hold at least this many times the cache, and no more sets than this.
PAST_CACHE = 3
MOST_SETS = 512


class Csr(NamedTuple):
    """One matrix: live blocks, offsets and indices (see `blast_kernels.linear.reference`), block columns."""

    values: Tensor
    offsets: Tensor
    indices: Tensor
    cols: int

    def dense(self) -> Tensor:
        """`[out, in]` with zeros where no block is live."""
        return to_dense(self.values, self.offsets, self.indices, self.cols)


class Weights(NamedTuple):
    """One set of sparse weights: the matrices, and what the fused kernels read of them; scales are those of fp8."""

    matrices: tuple[Csr, ...]  # gate (if any), up, down
    biases: tuple[Tensor | None, Tensor | None]
    front: Tensor
    front_records: Tensor
    down: Tensor
    down_records: Tensor
    gate: str
    front_scales: Tensor | None = None
    down_scales: Tensor | None = None


def sets_needed(bytes_of_one: float, cache: int) -> int:
    """How many sets of weights it takes that the next call of one finds none of it in a cache of so many bytes."""
    return min(MOST_SETS, max(1, math.ceil(PAST_CACHE * cache / max(1.0, bytes_of_one))))


def sparse_weights(size: MlpSize, masks: MlpMasks, tied: bool, generator: torch.Generator) -> Weights:
    """Random values on the live blocks of masks, scaled so that outputs stay near one."""
    parts = [masks.up, masks.down] if masks.gate is None else [masks.gate, masks.up, masks.down]
    blocks = [size.block] * (len(parts) - 1) + [size.down_block]
    matrices = tuple(_matrix(*pair, size.dtype, generator) for pair in zip(parts, blocks, strict=True))
    biases = _biases(size, generator)
    gate = "none" if masks.gate is None else "tied" if tied else "untied"
    *parts, down = matrices
    records, order = _front_records(parts, gate)
    front = torch.cat([matrix.values for matrix in parts]) if gate == "untied" else parts[0].values
    if gate == "tied":
        front = pack_tied(parts[0].values, parts[1].values)
    elif order is not None:
        front = front[order].contiguous()
    return Weights(matrices, biases, front, records, down.values, plain_records(down.offsets, down.indices), gate)


def without_dead(weights: Weights) -> tuple[Weights, float]:
    """The same MLP without hidden blocks that are provably zero or that nobody reads, and which share of them that is.

    Where front and down projection cut the hidden activations differently, nothing is left out.
    """
    *front, down = weights.matrices
    if front[0].values.shape[1] != down.values.shape[2]:
        return weights, 0.0
    if weights.gate == "none":
        live = torch.zeros(front[0].offsets.numel() - 1, dtype=torch.bool, device=down.values.device)
        live[down.indices.long()] = True
    else:
        live = live_hidden_rows(front[0].offsets, front[-1].offsets, down.indices)
    offsets, indices, kept = drop_columns(down.offsets, down.indices, live)
    small = weights._replace(
        front_records=_front_records(front, weights.gate, live)[0],
        down=down.values[kept].contiguous(),
        down_records=plain_records(offsets, indices),
    )
    return small, 1 - live.float().mean().item()


def in_fp8(weights: Weights) -> Weights:
    """The same MLP as the fused kernels read it in fp8; its matrices stay the ones that were quantised."""
    front, front_scales = quantize_blocks(weights.front)
    down, down_scales = quantize_blocks(weights.down)
    return weights._replace(front=front, down=down, front_scales=front_scales, down_scales=down_scales)


def from_fp8(weights: Weights) -> Weights:
    """What fp8 weights stand for, in the dtype they were made from (exact); its matrices are what is computed with."""
    dtype = weights.matrices[0].values.dtype
    front = dequantize(weights.front, weights.front_scales, dtype)
    down = dequantize(weights.down, weights.down_scales, dtype)
    parts = [front]
    if weights.gate == "tied":
        parts = list(unpack_tied(front))
    elif weights.gate == "untied":
        order = _front_records(weights.matrices[:2], "untied")[1]
        stored = torch.empty_like(front)
        stored[order] = front
        parts = list(stored.split([matrix.values.shape[0] for matrix in weights.matrices[:2]]))
    matrices = zip(weights.matrices, [*parts, down], strict=True)
    return weights._replace(
        matrices=tuple(matrix._replace(values=values) for matrix, values in matrices),
        front=front, down=down, front_scales=None, down_scales=None,
    )  # fmt: skip


def elsewhere(weights: Weights) -> Weights:
    """A copy of what the kernels read, in other memory: to a cache these are other weights."""
    return weights._replace(
        front=weights.front.clone(), front_records=weights.front_records.clone(),
        down=weights.down.clone(), down_records=weights.down_records.clone(),
        front_scales=None if weights.front_scales is None else weights.front_scales.clone(),
        down_scales=None if weights.down_scales is None else weights.down_scales.clone(),
    )  # fmt: skip


def dense_weights(size: MlpSize, generator: torch.Generator) -> tuple[list[Tensor], tuple]:
    """Random dense matrices (gate, up, down), not masked ones, and biases: what dense is timed with."""
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
    """What the MLP computes, in float32 throughout; one matrix at a time is made dense."""
    x = x.float()
    *front, down = weights.matrices
    first, second = (None if bias is None else bias.float() for bias in weights.biases)
    products = [x @ matrix.dense().float().t() for matrix in front]
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


def _front_records(matrices: Sequence[Csr], gate: str, live: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Records of the front, and the order its blocks are stored in where that is another one."""
    first, last = matrices[0], matrices[-1]
    if gate == "untied":
        return gated_records(first.offsets, first.indices, last.offsets, last.indices, live)
    return plain_records(first.offsets, first.indices, live), None
