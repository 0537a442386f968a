"""The conversion of fp8 in registers gives every number exactly: its assembly, computed here as PTX defines it."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from blast_kernels.common.fp8_dequant import widen
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


@triton.jit
def _widen(q, factors, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(out + at, widen(tl.load(q + at), tl.load(factors + at), tl.bfloat16, True).to(tl.float32))


def run_ptx(assembly: str, word: int) -> list[int]:
    """The two output words of an assembly of the four instructions that the conversion is made of."""
    registers = {"$2": word}

    def value(name: str) -> int:
        return registers[name] if name in registers else int(name, 0)

    for name, *words in re.findall(r"(prmt|shr|and|lop3)\.\w+ ([^;]+);", assembly):
        to, *given = words[0].split(", ")
        a, b, *more = map(value, given)
        if name == "prmt":
            pool = a.to_bytes(4, "little") + b.to_bytes(4, "little")
            found = int.from_bytes([pool[more[0] >> 4 * n & 7] for n in range(4)], "little")
        elif name == "lop3":
            found = sum(
                1 << n for n in range(32) if more[1] >> (4 * (a >> n & 1) + 2 * (b >> n & 1) + (more[0] >> n & 1)) & 1
            )
        else:
            found = a >> b if name == "shr" else a & b
        registers[to] = found
    return [registers["$0"], registers["$1"]]


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton interprets only where there is no GPU")
@pytest.mark.skipif(not hasattr(InterpreterBuilder, "get_bf16"), reason="this interpreter has no bfloat16 constants")
def test_every_number_is_converted_exactly(monkeypatch):
    def inline_assembly(assembly, constraints, arguments, dtype, is_pure, pack, **_):
        (q,) = arguments
        words = q.handle.data.view(np.uint32)
        halves = np.array([run_ptx(assembly, int(word)) for word in words], dtype=np.uint32).reshape(-1)
        # As float32: the interpreter multiplies the raw bits of bfloat16.
        wide = (halves.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        return tl.tensor(TensorHandle(wide, tl.float32), tl.block_type(tl.float32, q.shape))

    monkeypatch.setattr(tl, "inline_asm_elementwise", inline_assembly)
    q = torch.arange(256, dtype=torch.uint8)
    # All but the two NaN: blocks with a NaN have a NaN as factor. A power of two of them is needed.
    q = q[(q & 127) != 127]
    q = torch.cat([q, q[:2]]).view(torch.float8_e4m3fn)
    factors = torch.tensor([0.25, 1.0, 8.0, 2.0**-20]).repeat(64)
    out = torch.empty(256)
    _widen[(1,)](q, factors, out, 256)
    assert torch.equal(out, q.float() * factors)
