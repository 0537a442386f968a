"""The part of one decoder layer that a process holds, dense or block-sparse, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import blast
from blast.architectures.inference_memory import Sparse
from blast.architectures.shapes import ModelShape
from blast.benchmark.decoding.models import bytes_of_mlp
from blast.benchmark.inputs.model import make_randomly, uniform_masks
from blast.benchmark.mlp import DenseMlp
from blast.block_sparse.csr import BlockIndex
from blast.layers.block_linear import BlockLinear
from blast.layers.sparse_mlp import SparseMlp
from blast.tensor_parallel.attention import Heads, heads_of
from blast.tensor_parallel.matrices import sparse_parts
from blast.tensor_parallel.mlp import cut_mlp, hidden_features

AddUp = Callable[[Tensor], Tensor]


class Cached(NamedTuple):
    """Keys and values of the heads of one process, `[sequences, heads, context, head_size]` each."""

    keys: Tensor
    values: Tensor


class Attention(nn.Module):
    """The heads of one process, which read a full cache and write the new token to its end."""

    def __init__(self, shape: ModelShape, heads: Heads) -> None:
        super().__init__()
        width = shape.width_of_head
        self.width, self.cached = width, heads.cached[1]
        self.q_proj = nn.Linear(shape.hidden, heads.query[1] * width, bias=False)
        self.k_proj = nn.Linear(shape.hidden, heads.cached[1] * width, bias=False)
        self.v_proj = nn.Linear(shape.hidden, heads.cached[1] * width, bias=False)
        self.o_proj = nn.Linear(heads.query[1] * width, shape.hidden, bias=False)

    def forward(self, x: Tensor, cache: Cached) -> Tensor:
        """`[sequences, hidden]` to `[sequences, hidden]`: the part of the output that these heads make."""
        sequences = len(x)
        cache.keys[:, :, -1] = self.k_proj(x).view(sequences, self.cached, self.width)
        cache.values[:, :, -1] = self.v_proj(x).view(sequences, self.cached, self.width)
        # The query heads that share a head of the cache are rows of one product.
        query = self.q_proj(x).view(sequences, self.cached, -1, self.width)
        out = F.scaled_dot_product_attention(query, cache.keys, cache.values)
        return self.o_proj(out.reshape(sequences, -1))


class LayerPart(nn.Module):
    """What one process holds of a decoder layer: its heads, its hidden features, and whole norms.

    It is Llama's layer without rotary positions, which cost the same dense and sparse.

    Args:
        shape: Sizes of the model.
        heads: The heads of the process.
        hidden: Number of hidden features of the process.
    """

    def __init__(self, shape: ModelShape, heads: Heads, hidden: int) -> None:
        super().__init__()
        self.input_norm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)
        self.self_attn = Attention(shape, heads)
        self.mlp_norm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)
        self.mlp = DenseMlp(shape.hidden, hidden, shape.gated)

    def forward(self, x: Tensor, cache: Cached, add_up: AddUp) -> Tensor:
        """One decoding step, `[sequences, hidden]` to the same."""
        x = x + add_up(self.self_attn(self.input_norm(x), cache))
        return x + add_up(self.mlp(self.mlp_norm(x)))


class Work(NamedTuple):
    """What one process has to read for a step of the layer, in bytes.

    Attributes:
        weights: Of weights and indices that the step reads.
        mlp: The part of `weights` in the MLP.
        held: Of all that the part holds, the index of the transposed matrices too.
    """

    weights: int
    mlp: int
    held: int


def layer_part(
    shape: ModelShape,
    sparse: Sparse | None,
    rank: int,
    size: int,
    seed: int,
    dtype: torch.dtype,
    device: torch.device,
) -> LayerPart:
    """The part of one process, with random weights.

    A block-sparse MLP is split as `blast.load(…, tensor_parallel=True)` splits it: masks are drawn for the whole MLP,
    and hidden blocks are dealt out by live blocks. It is fused.

    Args:
        shape: Sizes of the model.
        sparse: How the MLP is sparse; None for a dense one.
        rank: The number of the process.
        size: The number of processes.
        seed: Seed of masks (the same in each process) and weights (others in each).
        dtype: Dtype of the weights.
        device: Where they are made.
    """
    heads = heads_of(SimpleNamespace(num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads), rank, size)
    with torch.device("meta"):
        whole = nn.Sequential(DenseMlp(shape.hidden, shape.ffn, shape.gated))
    (mlp,) = blast.find_mlps(whole)
    indices: dict[str, BlockIndex] = {}
    if sparse is not None:
        masks = uniform_masks(whole, sparse, seed)
        indices = {each.name: BlockIndex.from_mask(masks[each.name], each.shape) for each in mlp.targets}
    hidden = hidden_features(mlp, indices, size)[rank].numel()
    with torch.device("meta"):
        part = LayerPart(shape, heads, hidden)
    if sparse is not None:
        blast.to_sparse(part, _part_masks(cut_mlp(mlp, indices, rank, size), indices))
    make_randomly(part, torch.Generator(device).manual_seed(seed * 1000 + rank + 1), dtype, device)
    part.eval().requires_grad_(False)
    return part if sparse is None else blast.fuse(part)  # type: ignore[return-value]


def work_of(part: LayerPart) -> Work:
    """The bytes of a part."""
    sizes = blast.model_bytes(part)
    fused = isinstance(part.mlp, SparseMlp)
    mlp = bytes_of_mlp(part.mlp) if fused else sizes.mlp  # type: ignore[arg-type]
    return Work(sizes.weights - sizes.mlp + mlp, mlp, sizes.weights)


def cache_for(
    part: LayerPart, sequences: int, context: int, dtype: torch.dtype, device: torch.device, seed: int
) -> Cached:
    """Random keys and values of the heads of a part."""
    attention = part.self_attn
    generator = torch.Generator(device).manual_seed(seed)
    sizes = (sequences, attention.cached, context, attention.width)
    return Cached(*(torch.empty(sizes, dtype=dtype, device=device).normal_(generator=generator) for _ in range(2)))


def reference_mlp(mlp: nn.Module, x: Tensor) -> Tensor:
    """The part of the MLP's output in float32, one dense matrix at a time: `[tokens, hidden]` to the same."""
    gate, up, down = (getattr(mlp, f"{name}_proj") for name in ("gate", "up", "down"))
    act = mlp.act_fn
    hidden = _product(up, x.float())
    hidden = act(hidden) if gate is None else act(_product(gate, x.float())) * hidden  # type: ignore[operator]
    return _product(down, hidden)


def _product(layer: nn.Module, x: Tensor) -> Tensor:
    weight = layer.matrix().to_dense() if isinstance(layer, BlockLinear) else layer.weight
    bias = None if layer.bias is None else layer.bias.float()  # type: ignore[operator, union-attr]
    return F.linear(x, weight.float(), bias)  # type: ignore[operator]


def _part_masks(cuts: list, indices: dict[str, BlockIndex]) -> dict[str, Tensor]:
    """The masks of the part of one process, by the names in a `LayerPart`."""
    masks = {}
    for cut in cuts:
        parts, facts = sparse_parts(cut, indices[cut.name], {})
        offsets, columns = (parts[f"{cut.name}.{each}"].value for each in ("row_offsets", "col_indices"))
        index = BlockIndex(offsets, columns, tuple(facts["shape"]), indices[cut.name].block)
        masks[f"mlp.{cut.name.rpartition('.')[2]}"] = index.mask()
    return masks
