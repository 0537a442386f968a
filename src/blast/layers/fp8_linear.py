"""A block-sparse layer whose blocks are stored in fp8 and nowhere else, so that no second copy can become old."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from blast_kernels.common.quantize import dequantize, quantize_blocks, quantize_pairs
from torch import Tensor, nn

from blast.layers.block_linear import BlockLinear


class Fp8Blocks(NamedTuple):
    """The blocks of a matrix in fp8.

    Attributes:
        blocks: `[nnz, b_out, b_in]`, float8_e4m3fn.
        scales: `[nnz]`, float32. Gate and up projections with one mask share them.
        dtype: Dtype of the layer, float16 or bfloat16.
        requires_grad: Whether the parameter that was replaced required a gradient.
    """

    blocks: Tensor
    scales: Tensor
    dtype: torch.dtype
    requires_grad: bool


class Fp8BlockLinear(BlockLinear):
    """What a `BlockLinear` of an MLP becomes with fp8 weights; `to_fp8` and `from_fp8` change the layer in place.

    `values` is no parameter then. Each access computes it again: a new tensor, so a write to it changes nothing. The
    state dict holds it as before, and loading one quantizes what is loaded.
    """

    fp8: Fp8Blocks
    # Values that were loaded and are not quantized yet.
    loaded: Tensor | None

    @property
    def values(self) -> Tensor:  # type: ignore[override]
        """The blocks in the dtype of the layer, `[nnz, b_out, b_in]`: exactly what the fp8 blocks stand for."""
        if self.loaded is not None:
            return self.loaded
        return dequantize(self.fp8.blocks, self.fp8.scales, self.fp8.dtype)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}values"] = self.values
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, metadata: Any, strict: bool, *lists: Any) -> None:
        missing = lists[0]
        found = state_dict.pop(f"{prefix}values", None)
        if found is not None:
            blocks = self.fp8.blocks
            self.loaded = found.detach().to(device=blocks.device, dtype=self.fp8.dtype, copy=True)
        elif strict:
            missing.append(f"{prefix}values")
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, *lists)


def to_fp8(layers: Sequence[BlockLinear], shared_mask: bool) -> None:
    """Quantizes the blocks of an MLP in place.

    Args:
        layers: Gate (if any), up, down; in float16 or bfloat16. Layers that are in fp8 take what was loaded into them.
        shared_mask: Whether gate and up share a mask; then the two blocks of one place have one scale.
    """
    with torch.inference_mode(False), torch.no_grad():
        values = [layer.values.detach() for layer in layers]
        if len(layers) == 3 and shared_mask:
            first, second, scales = quantize_pairs(values[0], values[1])
            parts = [(first, scales), (second, scales), quantize_blocks(values[2])]
        else:
            parts = [quantize_blocks(each) for each in values]
    for layer, (blocks, scales), old in zip(layers, parts, values, strict=True):
        if isinstance(layer, Fp8BlockLinear):
            # In place, because a CUDA graph reads the memory that it was captured with.
            blocks, scales = layer.fp8.blocks.copy_(blocks), layer.fp8.scales.copy_(scales)
            requires_grad = layer.fp8.requires_grad
        else:
            parameter = layer._parameters.pop("values")
            requires_grad = parameter is not None and parameter.requires_grad
            layer.__class__ = Fp8BlockLinear
        changed = cast(Fp8BlockLinear, layer)
        changed.loaded, changed.fp8 = None, Fp8Blocks(blocks, scales, old.dtype, requires_grad)


def from_fp8(layers: Sequence[BlockLinear]) -> None:
    """Makes layers in fp8 ordinary block-sparse layers again, in place. Their blocks stay rounded."""
    for layer in layers:
        if isinstance(layer, Fp8BlockLinear):
            values = nn.Parameter(layer.values, requires_grad=layer.fp8.requires_grad)
            del layer.fp8, layer.loaded
            plain = cast(BlockLinear, layer)
            plain.__class__ = BlockLinear
            plain._parameters = {"values": values, **plain._parameters}
