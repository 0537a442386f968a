"""Other people's block-sparse products, run as an MLP: torch's BSR kernel, stanford-stk, blksprs.

Each is imported only when asked for, keeps activations in the form it likes best (conversions are not timed), and has
its output checked like ours. A peer is a class with `NAME` and `refusal(size)` (why it cannot run this, or None);
called with a weight set's number it returns `[tokens, hidden]`.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from blast_kernels.reference import apply_activation
from torch import Tensor

from blast.benchmark.kernel_weights import Csr, MlpSize, Weights
from blast.errors import unknown_name


class Peer:
    """An MLP out of a peer's product `W · h`, activations kept transposed: `[features, tokens]`."""

    NAME = ""
    PACKAGE = ""
    # Tokens are filled up to a multiple of this, with zeros.
    MULTIPLE = 1
    TUNED: bool | None = None

    def __init__(self, size: MlpSize, sets: list[Weights], x: Tensor, seconds: float) -> None:
        self.size, self.tokens = size, x.shape[0]
        padded = torch.nn.functional.pad(x, (0, 0, 0, -x.shape[0] % self.MULTIPLE))
        self.x = self.activations(padded.t().contiguous())
        self.sets = [[self.matrix(matrix) for matrix in weights.matrices] for weights in sets]
        self.biases = [[None if b is None else b[:, None] for b in weights.biases] for weights in sets]
        self.prepare(seconds)

    @classmethod
    def refusal(cls, size: MlpSize) -> str | None:
        """Why it cannot run such an MLP here, in one sentence; None if it can."""
        if cls.PACKAGE and find_spec(cls.PACKAGE) is None:
            return f"the package {cls.PACKAGE} is not installed"
        if size.block[0] != size.block[1]:
            return f"{cls.NAME} knows square blocks only"
        return None

    def activations(self, x: Tensor) -> Any:
        """`[features, tokens]` in the peer's own form."""
        return x

    def matrix(self, matrix: Csr) -> Any:
        """A matrix in the peer's own form."""
        raise NotImplementedError

    def product(self, matrix: Any, h: Any) -> Any:
        """`W · h`."""
        raise NotImplementedError

    def dense(self, h: Any) -> Tensor:
        """Activations in the peer's own form as `[features, tokens]`."""
        return h

    def prepare(self, seconds: float) -> None:
        """Tunes, where the peer has something to tune, for about so many seconds at most."""

    def run(self, number: int) -> Any:
        """The MLP, its output in the peer's own form; this is what is timed."""
        *gate, up, down = self.sets[number]
        first, second = self.biases[number]
        hidden = self.product(up, self.x)
        if first is not None:
            hidden = hidden + first
        act = self.size.activation
        hidden = (
            apply_activation(self.product(gate[0], self.x), act) * hidden if gate else apply_activation(hidden, act)
        )
        out = self.product(down, hidden)
        return out if second is None else out + second

    def output(self, number: int) -> Tensor:
        """The output as `[tokens, hidden]`, to be checked."""
        return self.dense(self.run(number)).t()[: self.tokens]


class TorchBsr(Peer):
    """`torch.sparse._triton_ops.bsr_dense_addmm`, with the parameters that torch's own tuner finds."""

    NAME, PACKAGE, MULTIPLE, TUNED = "torch_bsr", "", 16, False

    def matrix(self, matrix: Csr) -> Tensor:
        shape = ((matrix.offsets.numel() - 1) * matrix.values.shape[1], matrix.cols * matrix.values.shape[2])
        return torch.sparse_bsr_tensor(matrix.offsets, matrix.indices, matrix.values, shape, check_invariants=False)

    def product(self, matrix: Tensor, h: Tensor) -> Tensor:
        from torch.sparse._triton_ops import bsr_dense_addmm

        out = h.new_empty(matrix.shape[0], h.shape[1])
        # With beta 0 the first operand is not read.
        return bsr_dense_addmm(out, matrix, h, beta=0, out=out, meta=self.parameters.get(tuple(matrix.shape)))

    def prepare(self, seconds: float) -> None:
        self.parameters: dict[tuple[int, ...], dict] = {}
        self.TUNED = True
        *_, up, down = self.sets[0]
        for matrix, operand in ((up, self.x), (down, self.x.new_zeros(up.shape[0], self.x.shape[1]))):
            self.parameters[tuple(matrix.shape)], whole = tuned_parameters(matrix, operand, seconds / 2)
            self.TUNED = self.TUNED and whole


class Stk(Peer):
    """`stk.ops.dsd` of stanford-stk; blocks of 128."""

    NAME, PACKAGE, MULTIPLE = "stk", "stk", 128

    @classmethod
    def refusal(cls, size: MlpSize) -> str | None:
        if size.block != (128, 128):
            return "stk knows blocks of 128 only"
        if size.dtype == torch.float32:
            return "stk knows half precision only"
        return super().refusal(size)

    def matrix(self, matrix: Csr) -> Any:
        import stk

        return stk.ops.to_sparse(matrix.dense(), blocking=128)

    def product(self, matrix: Any, h: Tensor) -> Tensor:
        import stk

        return stk.ops.dsd(matrix, h)


class Blksprs(Peer):
    """`blksprs.ops.matmul`: activations stay in its compressed form, in which every block is there."""

    NAME, PACKAGE = "blksprs", "blksprs"

    def __init__(self, size: MlpSize, sets: list[Weights], x: Tensor, seconds: float) -> None:
        self.MULTIPLE, self.device = size.block[0], x.device
        self.caches: dict[int, dict] = {}
        self.layouts: dict[int, Tensor] = {}
        super().__init__(size, sets, x, seconds)

    @classmethod
    def refusal(cls, size: MlpSize) -> str | None:
        return "blksprs adds no bias to compressed activations" if size.bias else super().refusal(size)

    def activations(self, x: Tensor) -> Any:
        import blksprs as bs

        side = self.size.block[0]
        return bs.ops.to_sparse(x[None].contiguous(), self._full(x.shape[0] // side), side)

    def matrix(self, matrix: Csr) -> Any:
        import blksprs as bs

        rows = matrix.offsets.numel() - 1
        owner = torch.repeat_interleave(torch.arange(rows, device=matrix.offsets.device), matrix.offsets.diff().long())
        layout = torch.zeros(1, rows, matrix.cols, dtype=torch.bool, device=matrix.values.device)
        layout[0, owner, matrix.indices.long()] = True
        return bs.ops.to_sparse(matrix.dense()[None], layout, self.size.block[0]), layout

    def product(self, matrix: Any, h: Any) -> Any:
        import blksprs as bs

        values, layout = matrix
        # What depends on layouts alone is made once and kept, as its documentation says.
        cache = self.caches.setdefault(id(layout), {})
        return bs.ops.matmul(
            values, layout, h, self._full(layout.shape[2]), self._full(layout.shape[1]), self.size.block[0], cache
        )

    def _full(self, rows: int) -> Tensor:
        if rows not in self.layouts:
            tokens = -(-self.tokens // self.MULTIPLE)
            self.layouts[rows] = torch.ones(1, rows, tokens, dtype=torch.bool, device=self.device)
        return self.layouts[rows]

    def dense(self, h: Any) -> Tensor:
        import blksprs as bs

        side = self.size.block[0]
        return bs.ops.to_dense(h, self._full(self.size.hidden // side), side)[0]


PEERS: dict[str, type[Peer]] = {peer.NAME: peer for peer in (TorchBsr, Stk, Blksprs)}


def peer_of(name: str) -> type[Peer]:
    """The peer of that name.

    Raises:
        BlastError: if there is none; the message gives the nearest.
    """
    if name not in PEERS:
        raise unknown_name("peer", name, PEERS)
    return PEERS[name]


def tuned_parameters(matrix: Tensor, operand: Tensor, seconds: float) -> tuple[dict[str, int] | None, bool]:
    """What torch's tuner finds best for a BSR product, and whether it came to its end in the time.

    Args:
        matrix: BSR.
        operand: `[in, tokens]`.
        seconds: When to stop it; the best that it tried until then is taken (None if it tried nothing).
    """
    from torch.sparse import _triton_ops_meta as tuner

    tried: dict[tuple[int, ...], float] = {}
    search = tuner.minimize
    out = operand.new_empty(matrix.shape[0], operand.shape[1])
    # The tuner keeps what it tried to itself, so that one stopped early would count as not tuned at all.
    tuner.minimize = lambda *arguments, **options: search(*arguments, **options, all_values=tried)
    try:
        with time_limit(seconds):
            return tuner.tune_bsr_dense_addmm(out, matrix, operand, beta=0, force=True), True
    except TimeUp:
        times = {key: time for key, time in tried.items() if isinstance(time, float)}
        best = min(times, key=lambda key: times[key], default=None)
        names = ("GROUP_SIZE_ROW", "SPLIT_N", "num_stages", "num_warps")
        return (None if best is None else dict(zip(names, best, strict=True))), False
    finally:
        tuner.minimize = search


class TimeUp(BaseException):
    """The time is over; no Exception, as the tuner takes those for parameters that do not work."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeUp within after so many seconds; works in the main thread, between two calls of Python."""

    def stop(*_: object) -> None:
        raise TimeUp

    before: Callable | int | None = signal.signal(signal.SIGALRM, stop)
    signal.alarm(max(1, math.ceil(seconds)))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
