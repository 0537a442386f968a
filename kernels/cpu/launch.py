"""Launches the C++ kernels, or says that PyTorch has to do.

`BLAST_CPU_KERNELS=0` switches them off.
"""

from __future__ import annotations

import ctypes
import os
import threading
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from blast_kernels.common.constants import ACTIVATIONS
from blast_kernels.common.eager import is_plain
from blast_kernels.cpu import build
from torch import Tensor

SWITCH = "BLAST_CPU_KERNELS"
DTYPES = (torch.float32, torch.bfloat16)
# Sides of blocks are multiples of it: the rows of a tile, and half a vector of bfloat16.
SIDE = 16
# With fewer weights (in bytes) and multiplications one thread does it all, in about 30 µs: starting others takes 10.
ALONE_BYTES, ALONE_PRODUCTS = 1 << 20, 1 << 21


class Kernels(NamedTuple):
    """The function of the library, and the two functions of torch's OpenMP that it starts threads with."""

    products: Any
    start: int
    meet: int


_lock = threading.Lock()
_loaded: list[Kernels | None] = []


def kernels() -> Kernels | None:
    """The C++ kernels, built at the first call; None if they are off or cannot be had, which one warning says."""
    if not _loaded:
        with _lock:
            if not _loaded:
                off = os.environ.get(SWITCH, "").lower() in ("0", "off", "false", "no")
                _loaded.append(None if off else open_kernels())
    return _loaded[0]


class Operands(NamedTuple):
    """A product that a row list describes; arguments as `blast_kernels.mlp_inference.reference.product`, contiguous."""

    values: Tensor
    up: Tensor | None
    row_list: Tensor
    bias: Tensor | None
    out_features: int
    activation: str = "none"
    gate: str = "none"
    blocks: int | None = None


def supports(x: Tensor, *blocks: Tensor) -> bool:
    """Whether the kernels run here and take these operands; the references take all.

    Args:
        x: Activations.
        blocks: Live blocks `[nnz, b_out, b_in]` of each matrix.
    """
    if x.device.type != "cpu" or x.dtype not in DTYPES:
        return False
    for values in blocks:
        if values.dtype != x.dtype or values.shape[1] % SIDE or values.shape[2] % SIDE:
            return False
    return kernels() is not None


def serves_at_once(x: Tensor, in_features: int, *blocks: Tensor) -> bool:
    """Whether a product may be computed by a call of this module, without its operator, which takes 80 µs when cold.

    See `blast_kernels.common.eager.is_plain`.

    Args:
        x: Activations `[..., in_features]`.
        in_features: What the matrix needs.
        blocks: As for `supports`, contiguous.
    """
    return x.shape[-1:] == (in_features,) and is_plain(x) and supports(x, *blocks)


def linear(x: Tensor, values: Tensor, row_offsets: Tensor, col_indices: Tensor, bias: Tensor | None) -> Tensor:
    """`x · Wᵀ + bias`; arguments as `blast_kernels.linear.reference.block_matmul`, contiguous."""
    _, b_out, b_in = values.shape
    rows = row_offsets.numel() - 1
    y = torch.empty(x.shape[0], rows * b_out, dtype=x.dtype, device=x.device)
    numbers = (rows, 0, b_out, b_in, x.shape[1], rows * b_out, 0, 0, 0)
    tensors = (values, None, bias, None, row_offsets, col_indices)
    return _run(kernels(), x, y, [_description(tensors, numbers)], values.numel())


def products(x: Tensor, *operands: Operands) -> Tensor:
    """One product with its epilogue, or two of which the second takes the result of the first: an MLP.

    Args:
        x: `[tokens, in]`, contiguous.
        operands: Of one or two products. The second must have every block row, and read no block row that the first
            lacks.

    Returns:
        `[tokens, out]` in the dtype of `x`; zero at block rows that have no entry.
    """
    last = operands[-1]
    complete = last.row_list.shape[0] * last.values.shape[1] == last.out_features
    y = (torch.empty if complete else torch.zeros)(x.shape[0], last.out_features, dtype=x.dtype, device=x.device)
    described, size, in_features = [], 0, x.shape[1]
    for each in operands:
        entries, width = each.row_list.shape
        numbers = (entries, width, *each.values.shape[1:], in_features, each.out_features)
        kind = (ACTIVATIONS.index(each.activation), each.gate == "tied", each.blocks is not None)
        tensors = (each.values, each.up, each.bias, each.row_list, None, None)
        described.append(_description(tensors, (*numbers, *kind)))
        size += each.values.numel() + (0 if each.up is None else each.up.numel())
        in_features = each.out_features
    return _run(kernels(), x, y, described, size)


def _description(tensors: Sequence[Tensor | None], numbers: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    """`Product` of operands.h; the tensors have to outlive it.

    Args:
        tensors: Blocks, blocks of the up projection, bias, row list, offsets, columns.
        numbers: Entries, width of the row list, sides of a block, features, activation, tied or not, places or not.
    """
    # A matrix without blocks has no address, but "none" means that there is no such operand.
    addresses = [0 if part is None else part.data_ptr() or SIDE for part in tensors]
    return (ctypes.c_int64 * (len(addresses) + len(numbers)))(*addresses, *numbers)


def _run(found: Kernels | None, x: Tensor, y: Tensor, described: Sequence[ctypes.Array], size: int) -> Tensor:
    if found is None:
        raise RuntimeError("the C++ kernels are not loaded; ask supports() first")
    if y.numel() == 0:
        return y
    tokens = x.shape[0]
    alone = size * x.itemsize <= ALONE_BYTES and size * tokens <= ALONE_PRODUCTS
    threads = 1 if alone else torch.get_num_threads()
    second = described[1] if len(described) == 2 else None
    failed = found.products(
        described[0], second, x.data_ptr(), y.data_ptr(), tokens, x.dtype == torch.bfloat16, threads, found.start,
        found.meet,
    )  # fmt: skip
    if failed:
        raise MemoryError("there is no memory for the activations of a block-sparse product")
    return y


def open_kernels() -> Kernels | None:
    """Builds or loads the kernels and tries them; None with a warning if that fails. Use `kernels`, which remembers."""
    try:
        function = build.load().blast_products
        address, number = ctypes.c_void_p, ctypes.c_int64
        function.argtypes = [address, address, address, address, number, number, number, address, address]
        function.restype = ctypes.c_int
        found = Kernels(function, *_threads())
        _check(found)
        return found
    except build.UnavailableError as error:
        warnings.warn(
            f"block-sparse layers run in plain PyTorch on this processor, which is slower: {error} "
            f"({SWITCH}=0 hides this warning).",
            stacklevel=2,
        )
        return None


def _threads() -> tuple[int, int]:
    """Addresses of `GOMP_parallel` and `GOMP_barrier` of the OpenMP that torch has loaded."""
    try:
        found = ctypes.CDLL(None)
        first, second = (ctypes.cast(name, ctypes.c_void_p).value for name in (found.GOMP_parallel, found.GOMP_barrier))
    except AttributeError as error:
        raise build.UnavailableError(
            "this build of torch has no OpenMP of GNU's kind; install torch from PyPI"
        ) from error
    return first or 0, second or 0


def _check(found: Kernels) -> None:
    """Multiplies with one block by each kernel, since a compiler may err."""
    generator = torch.Generator().manual_seed(0)
    row_offsets, col_indices = (torch.tensor(each, dtype=torch.int32, device="cpu") for each in ([0, 1], [0]))
    for dtype, bound in zip(DTYPES, (1e-5, 1e-2), strict=True):
        for tokens in (1, 20):
            x = torch.randn(tokens, 48, generator=generator, device="cpu").to(dtype)
            block = torch.randn(1, 32, 48, generator=generator, device="cpu").to(dtype)
            described = _description(
                (block, None, None, None, row_offsets, col_indices), (1, 0, 32, 48, 48, 32, 0, 0, 0)
            )
            y = _run(found, x, torch.zeros_like(x[:, :32]), [described], block.numel()).double()
            expected = x.double() @ block[0].double().t()
            if not (y - expected).norm() < bound * expected.norm():
                raise build.UnavailableError(
                    "the compiled C++ kernels compute something else; set CXX to another compiler"
                )
