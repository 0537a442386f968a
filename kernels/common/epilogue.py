"""Steps on a finished accumulator: apply the activation, round the gate, split gate and up."""

from __future__ import annotations

import triton
import triton.language as tl

# erf(x / sqrt(2)) = tanh(x · (a + b x² + c x⁴)), fitted for |x| < 6. Gelu is then off by 2.5e-5 at most. Beyond, x² is
# clamped to 36.
GELU_A = tl.constexpr(0.797507884)
GELU_B = tl.constexpr(0.0370056461)
GELU_C = tl.constexpr(-0.0003515168)
GELU_END = tl.constexpr(36.0)


@triton.jit
def approximate_tanh(x):
    """The hardware's tanh of a float32 tile, off by up to 2⁻¹¹. Triton's interpreter cannot run this assembly."""
    return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def activate(x, ACTIVATION: tl.constexpr, FAST: tl.constexpr = False):
    """`silu`, `gelu`, `gelu_tanh` or `none` of a float32 tile.

    `FAST` uses the hardware's tanh. Its error is a quarter of bfloat16's own rounding, so use it for bfloat16 only.
    It takes one call of the special function unit where `silu` and `gelu_tanh` take two, and an erf takes fifty
    instructions. In a short row of blocks those are a quarter of a tile's time.
    """
    if ACTIVATION == "silu":
        if FAST:
            half = 0.5 * x
            x = half * approximate_tanh(half) + half
        else:
            x = x / (1.0 + tl.exp(-x))
    elif ACTIVATION == "gelu_tanh":
        # tanh(u) with u = sqrt(2 / pi) · (x + 0.044715 x³); 0.5 · (1 + tanh(u)) is the logistic function of 2u.
        u = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        if FAST:
            half = 0.5 * x
            x = half * approximate_tanh(u) + half
        else:
            x = x / (1.0 + tl.exp(-2.0 * u))
    elif ACTIVATION == "gelu":
        half = 0.5 * x
        if FAST:
            square = tl.minimum(x * x, GELU_END)
            x = half * approximate_tanh(x * (GELU_A + square * (GELU_B + square * GELU_C))) + half
        else:
            x = half * (1.0 + tl.math.erf(x * 0.7071067811865476))
    return x


@triton.jit
def round_now(x, dtype: tl.constexpr, OPAQUE: tl.constexpr):
    """`x` rounded to `dtype` before the code that follows.

    Without the opaque move LLVM delays the rounding until after the next loop, keeps float32 during it, and spills (197
    instead of 32 stores: gate and up with separate masks, 128×128 tile, 4 warps). Triton's interpreter cannot run this
    assembly: pass `OPAQUE=False` there.
    """
    x = x.to(dtype)
    if OPAQUE:
        x = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=x.dtype, is_pure=False, pack=2)
    return x


@triton.jit
def split_columns(x, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Gate and up `[ROWS, COLS]` of `x [ROWS, 2 · COLS]`, which has eight columns of each in turn. Moves no data."""
    gate, up = x.reshape(ROWS, COLS // 8, 2, 8).permute(0, 1, 3, 2).split()
    return gate.reshape(ROWS, COLS), up.reshape(ROWS, COLS)


@triton.jit
def split_rows(x, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Gate and up `[ROWS, COLS]` of `x [2 · ROWS, COLS]`, which has eight rows of each in turn. Moves no data."""
    gate, up = x.reshape(ROWS // 8, 2, 8, COLS).permute(0, 2, 3, 1).split()
    return gate.reshape(ROWS, COLS), up.reshape(ROWS, COLS)
