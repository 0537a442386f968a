"""Kernel of the gradient of the pre-activations: back through the down projection and the activation, fused.

A program computes one tile. It multiplies with the transposed blocks of the down projection and reads the saved
pre-activations once. It writes their gradients and the hidden activations, which the gradient of the down projection
needs. At high sparsity it is bound by memory: five tiles of traffic for one to three blocks.
Reference: `reference.hidden_grad`. Launched by `launch.hidden_grad`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from blast_kernels.common.swizzle import swizzled_tile
from blast_kernels.mlp_training.gather_matmul import gather


@triton.jit
def activation_and_derivative(x, ACTIVATION: tl.constexpr):
    """Value and derivative of an activation of a float32 tile."""
    if ACTIVATION == "silu":
        share = 1.0 / (1.0 + tl.exp(-x))
        value = x * share
        derivative = share + value * (1.0 - share)
    elif ACTIVATION == "gelu_tanh":
        # 0.5 · (1 + tanh(u)) is the logistic function of 2u. The derivative applies the chain rule to u.
        share = 1.0 / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))
        value = x * share
        derivative = share + value * (1.0 - share) * (1.5957691216057308 + 0.2140644488 * x * x)
    elif ACTIVATION == "gelu":
        share = 0.5 * (1.0 + tl.math.erf(x * 0.7071067811865476))
        value = x * share
        derivative = share + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
    else:
        value = x
        derivative = 0.0 * x + 1.0
    return value, derivative


@triton.jit(do_not_specialize=["count", "token_tiles", "GROUP"])
def hidden_grad_kernel(
    grad_descriptor,
    down_descriptor,
    pre_descriptor,
    grad_pre_descriptor,
    hidden_descriptor,
    row_lists,
    bias_parts,
    count,
    token_tiles,
    GROUP,
    width,
    B_OUT: tl.constexpr,
    B_HIDDEN: tl.constexpr,
    SLICE: tl.constexpr,
    K: tl.constexpr,
    TILE: tl.constexpr,
    GATED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    SLICES: tl.constexpr = B_HIDDEN // SLICE
    item = tl.program_id(0)
    rank, token_tile = swizzled_tile(item // SLICES, count, token_tiles, GROUP)
    token = token_tile * TILE
    piece = (item % SLICES) * SLICE
    row_list = row_lists + rank * width
    row = tl.load(row_list)
    blocks = tl.load(row_list + 2)
    at = row * B_HIDDEN + piece
    up_at = at + count * B_HIDDEN
    total = tl.zeros((TILE, SLICE), dtype=tl.float32)
    total = gather(
        total, grad_descriptor, down_descriptor, row_list + 4, blocks, token, piece,
        B_OUT, B_OUT, K, True, False, STAGES, PRECISION,
    )  # fmt: skip
    pre = pre_descriptor.load([token, at]).to(tl.float32)
    value, derivative = activation_and_derivative(pre, ACTIVATION)
    if GATED:
        up = pre_descriptor.load([token, up_at]).to(tl.float32)
        grad_pre_descriptor.store([token, up_at], (total * value).to(grad_pre_descriptor.dtype))
        hidden_descriptor.store([token, at], (value * up).to(hidden_descriptor.dtype))
        total = total * up
    else:
        hidden_descriptor.store([token, at], value.to(hidden_descriptor.dtype))
    total = total * derivative
    grad_pre_descriptor.store([token, at], total.to(grad_pre_descriptor.dtype))
    if HAS_BIAS:
        # Tokens past the last one add nothing, because their rows were read as zeros. The parts are summed in a fixed
        # order after the kernel.
        where = token_tile.to(tl.int64) * (count * B_HIDDEN) + at + tl.arange(0, SLICE)
        tl.store(bias_parts + where, tl.sum(total, axis=0))
