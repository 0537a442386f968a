"""Block values in fp8 (e4m3) with one scale a block: weights of one byte, for the inference kernels.

`w ≈ q · scale`. The scales are powers of two, so `q · scale` is exact in float16 and bfloat16, and a kernel may scale
before its dot product. The only error comes from rounding `w / scale` to the 3 mantissa bits of e4m3.
e4m3 has 4 exponent bits and no infinity. It reaches from 2⁻⁶ (subnormal: 2⁻⁹) to 448.
"""

from __future__ import annotations

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
# Dtypes of the activations that fp8 weights are multiplied with.
HALVES = (torch.float16, torch.bfloat16)
# Exponent of the smallest scale at which the smallest subnormal of e4m3 (2⁻⁹ · scale) is still a number of the dtype.
# With a smaller scale `q · scale` would be rounded. In float16 this grid is float16's own, so nothing is lost.
LEAST_EXPONENT = {torch.float16: -15, torch.bfloat16: -117, torch.float32: -117}


def quantize_blocks(values: Tensor) -> tuple[Tensor, Tensor]:
    """The blocks in fp8. The largest magnitude of each block is between 224 and 448 times its scale.

    An element of at least 2⁻⁶ · scale is off by at most 1/16 of itself, a smaller one by at most 2⁻¹⁰ · scale. Smaller
    ones exist only in blocks whose magnitudes differ by more than a factor of 14,336. A block with NaN or infinity gets
    NaN as its scale, because the kernels shift bits and do not recognise a NaN of e4m3.

    Args:
        values: `[nnz, rows, b_in]`, float16, bfloat16 or float32. Pass them in the dtype of the activations and in the
            layout that the kernel reads (`pack_tied` for gate and up together).

    Returns:
        `q [nnz, rows, b_in]`, float8_e4m3fn, and `scales [nnz]`, float32. The scale of a block of zeros is 1.

    Raises:
        ValueError: for another dtype or number of dimensions.
    """
    if values.dtype not in LEAST_EXPONENT or values.dim() != 3:
        raise ValueError(
            f"values are {values.dtype} {list(values.shape)}; "
            f"pass blocks [nnz, rows, b_in] in float16, bfloat16 or float32"
        )
    largest = values.abs().amax(dim=(1, 2)).float()
    # 448 is 0.875 · 2⁹; `largest` is mantissa · 2^exponent with a mantissa from 0.5 to 1.
    mantissa, exponent = torch.frexp(largest)
    exponent = (exponent - 9 + (mantissa > 0.875)).clamp(min=LEAST_EXPONENT[values.dtype])
    exponent = torch.where(largest.isfinite() & (largest > 0), exponent, 0)
    # Built from its bits, because a power function need not be exact.
    scales = ((exponent.to(torch.int32) + 127) << 23).view(torch.float32)
    scales = torch.where(largest.isfinite(), scales, float("nan"))
    # Values in the last sixteenth of the dtype's range would be rounded up to infinity.
    limit = torch.finfo(values.dtype).max * 15 / 16
    wide = torch.where(values.isfinite(), values.float().clamp(-limit, limit), float("nan"))
    return (wide / scales.nan_to_num(1.0)[:, None, None]).to(FP8).contiguous(), scales


def quantize_pairs(gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Blocks of a gate and an up projection that share a mask, in fp8; two blocks of one place have one scale.

    Args:
        gate: `[nnz, rows, b_in]`, as `quantize_blocks` takes it.
        up: The same.

    Returns:
        The gate's blocks, those of the up projection, and `scales [nnz]`.
    """
    q, scales = quantize_blocks(torch.cat([gate, up], dim=1))
    first, second = q.split(gate.shape[1], dim=1)
    return first.contiguous(), second.contiguous(), scales


def dequantize(q: Tensor, scales: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """`q · scale`; exact in float32 and in the dtype that the blocks had before.

    Args:
        q: `[nnz, rows, b_in]`, float8_e4m3fn.
        scales: `[nnz]`, float32.
        dtype: Dtype of the result.
    """
    return (q.float() * scales[:, None, None]).to(dtype)
