"""Other people's block-sparse products, run as an MLP: torch's BSR kernel, stanford-stk, blksprs.

Each is imported only when asked for, keeps activations in the form it likes best (conversions are not timed), and has
its output checked like ours. What lies between the products is one compiled kernel, so that a peer pays for no more
passes over the hidden activations than it must.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, ClassVar, Protocol

import torch
from blast_kernels.common.dense import apply_activation
from torch import Tensor

from blast.benchmark.inputs.mlp import MlpSize
from blast.benchmark.inputs.weights import Csr, Weights, expected_output
from blast.benchmark.providers.bsr_tuning import tuned_parameters
from blast.benchmark.providers.mlp_inference import CHECKED_TOKENS, Case, Provider, check_of, first_line
from blast.benchmark.timing.cuda_graphs import Candidate, sampled_rows
from blast.errors import unknown_name


class Peer(Protocol):
    """A product `W · h` of somebody else's, with activations kept transposed.

    Attributes:
        ADDS_BIAS: Whether the product adds a bias itself.
        padded: Tokens that it computes: as many as asked for, filled up with zeros to what it can divide.
        tuned: Whether its tuner came to its end; None where it has none that could be stopped.
    """

    ADDS_BIAS: ClassVar[bool]
    padded: int
    tuned: bool | None

    def __init__(self, size: MlpSize, tokens: int, seconds: float) -> None:
        """For so many tokens; tuning may take about so many seconds."""

    @staticmethod
    def refusal(size: MlpSize) -> str | None:
        """Why it cannot run such an MLP here, in one sentence; None if it can."""

    def matrix(self, matrix: Csr) -> Any:
        """A matrix in its own form."""

    def bias(self, bias: Tensor) -> Tensor:
        """A bias `[features]` in a form that can be added to activations."""

    def activations(self, x: Tensor) -> Any:
        """`[features, padded]` in its own form."""

    def product(self, matrix: Any, h: Any, bias: Tensor | None) -> Any:
        """`W · h`, and the bias if it is one to add; tunes at the first call of a shape."""

    def dense(self, h: Any) -> Tensor:
        """Activations in its own form as `[features, padded]`."""


class PeerMlp:
    """An MLP out of a peer's products.

    Args:
        peer: Made for this size and so many tokens.
        size: The MLP.
        sets: Its weights.
        x: `[tokens, hidden]`.
    """

    def __init__(self, peer: Peer, size: MlpSize, sets: Sequence[Weights], x: Tensor) -> None:
        self.peer, self.activation, self.tokens = peer, size.activation, x.shape[0]
        padded = torch.nn.functional.pad(x, (0, 0, 0, peer.padded - x.shape[0]))
        self.x = peer.activations(padded.t().contiguous())
        self.sets = [[peer.matrix(matrix) for matrix in weights.matrices] for weights in sets]
        self.biases = [[None if b is None else peer.bias(b) for b in weights.biases] for weights in sets]
        self.between = torch.compile(held, dynamic=False) if x.is_cuda else held
        self.run(0)

    def run(self, number: int) -> Any:
        """The MLP with the weight set of that number, its output in the peer's own form; this is what is timed."""
        *front, down = self.sets[number]
        inside, outside = (
            (self.biases[number], (None, None)) if self.peer.ADDS_BIAS else ((None, None), self.biases[number])
        )
        products = [self.peer.product(matrix, self.x, inside[0]) for matrix in front]
        out = self.peer.product(down, self.between(products, outside[0], self.activation), inside[1])
        return out if outside[1] is None else out + outside[1]

    def output(self, number: int) -> Tensor:
        """The output as `[tokens, hidden]`, to be checked."""
        return self.peer.dense(self.run(number)).t()[: self.tokens]


def held(products: list[Tensor], bias: Tensor | None, activation: str) -> Tensor:
    """What lies between the products: bias, activation and gate."""
    *gate, up = products
    up = up if bias is None else up + bias
    return apply_activation(gate[0], activation) * up if gate else apply_activation(up, activation)


class TorchBsr:
    """`torch.sparse._triton_ops.bsr_dense_addmm`, with the parameters that torch's own tuner finds."""

    ADDS_BIAS = True

    def __init__(self, size: MlpSize, tokens: int, seconds: float) -> None:
        # Its tiles are `tokens // split` wide, a power of two; it begins with a split of `tokens // rows of a block`.
        most = max(size.block[0], size.down_block[0])
        self.padded = round_up(tokens, most) if tokens >= most else max(16, 1 << (tokens - 1).bit_length())
        self.tuned: bool | None = True
        # Front and down each have a shape of their own.
        self._seconds = seconds / 2
        self._parameters: dict[tuple[int, ...], dict[str, int] | None] = {}

    @staticmethod
    def refusal(size: MlpSize) -> str | None:
        return None

    def matrix(self, matrix: Csr) -> Tensor:
        _, b_out, b_in = matrix.values.shape
        shape = ((matrix.offsets.numel() - 1) * b_out, matrix.cols * b_in)
        return torch.sparse_bsr_tensor(matrix.offsets, matrix.indices, matrix.values, shape, check_invariants=False)

    def bias(self, bias: Tensor) -> Tensor:
        return bias[:, None].expand(-1, self.padded)

    def activations(self, x: Tensor) -> Tensor:
        return x

    def product(self, matrix: Tensor, h: Tensor, bias: Tensor | None) -> Tensor:
        from torch.sparse._triton_ops import bsr_dense_addmm

        shape = tuple(matrix.shape)
        if shape not in self._parameters:
            self._parameters[shape], whole = tuned_parameters(matrix, h, bias, self._seconds)
            self.tuned = self.tuned and whole
        out = h.new_empty(matrix.shape[0], h.shape[1])
        meta = self._parameters[shape]
        # With beta 0 the first operand is not read.
        if bias is None:
            return bsr_dense_addmm(out, matrix, h, beta=0, out=out, meta=meta)
        return bsr_dense_addmm(bias, matrix, h, beta=1, out=out, meta=meta)

    def dense(self, h: Tensor) -> Tensor:
        return h


class Stk:
    """`stk.ops.dsd` of stanford-stk; blocks of 128, nothing to tune."""

    ADDS_BIAS = False

    def __init__(self, size: MlpSize, tokens: int, seconds: float) -> None:
        self.padded, self.tuned = round_up(tokens, 128), None

    @staticmethod
    def refusal(size: MlpSize) -> str | None:
        if {size.block, size.down_block} != {(128, 128)}:
            return "stk knows blocks of 128 only"
        if size.dtype == torch.float32:
            return "stk knows half precision only"
        return missing_package("stk")

    def matrix(self, matrix: Csr) -> Any:
        import stk

        rows, shape = block_rows(matrix), ((matrix.offsets.numel() - 1) * 128, matrix.cols * 128)
        # Its indices are of 16 bits, its offsets of 32.
        return stk.Matrix(shape, matrix.values, rows.short(), matrix.indices.short(), matrix.offsets.int())

    def bias(self, bias: Tensor) -> Tensor:
        return bias[:, None]

    def activations(self, x: Tensor) -> Tensor:
        return x

    def product(self, matrix: Any, h: Tensor, bias: Tensor | None) -> Tensor:
        import stk

        return stk.ops.dsd(matrix, h)

    def dense(self, h: Tensor) -> Tensor:
        return h


class Blksprs:
    """`blksprs.ops.matmul`: activations stay in its compressed form, in which every block is there.

    What depends on layouts alone is made once and kept, as its documentation says, and its checks, which wait for the
    GPU in each call, are off. Its autotuner runs at the first product, whose choice it keeps for a side of blocks.
    """

    ADDS_BIAS = False

    def __init__(self, size: MlpSize, tokens: int, seconds: float) -> None:
        from blksprs.ops.matmul import matmul_kernel

        self.side = size.block[0]
        self.padded, self.tuned = round_up(tokens, self.side), None
        self._layouts: dict[int, Tensor] = {}
        # It would keep what was best for another shape.
        matmul_kernel.cache.clear()

    @staticmethod
    def refusal(size: MlpSize) -> str | None:
        if len({*size.block, *size.down_block}) > 1:
            return "blksprs knows square blocks of one side only"
        return missing_package("blksprs")

    def matrix(self, matrix: Csr) -> tuple[Tensor, Tensor, dict]:
        layout = torch.zeros(1, matrix.offsets.numel() - 1, matrix.cols, dtype=torch.bool, device=matrix.values.device)
        layout[0, block_rows(matrix), matrix.indices.long()] = True
        return matrix.values, layout, {}

    def bias(self, bias: Tensor) -> Tensor:
        return bias.view(-1, self.side, 1).repeat_interleave(self.padded // self.side, 0)

    def activations(self, x: Tensor) -> Tensor:
        import blksprs as bs

        with unchecked():
            return bs.ops.to_sparse(x[None], self._full(x.shape[0] // self.side, x.device), self.side).as_subclass(
                Tensor
            )

    def product(self, matrix: tuple[Tensor, Tensor, dict], h: Tensor, bias: Tensor | None) -> Tensor:
        import blksprs as bs

        values, layout, cache = matrix
        before, after = (self._full(layout.shape[dim], layout.device) for dim in (2, 1))
        with unchecked():
            return bs.ops.matmul(values, layout, h, before, after, self.side, cache).as_subclass(Tensor)

    def dense(self, h: Tensor) -> Tensor:
        import blksprs as bs

        rows = h.shape[0] * self.side // self.padded
        with unchecked():
            return bs.ops.to_dense(h, self._full(rows, h.device), self.side)[0].as_subclass(Tensor)

    def _full(self, rows: int, device: torch.device) -> Tensor:
        if rows not in self._layouts:
            self._layouts[rows] = torch.ones(1, rows, self.padded // self.side, dtype=torch.bool, device=device)
        return self._layouts[rows]


PEERS: dict[str, type[Peer]] = {"torch_bsr": TorchBsr, "stk": Stk, "blksprs": Blksprs}


def peer_of(name: str) -> type[Peer]:
    """The peer of that name.

    Raises:
        BlastError: if there is none; the message gives the nearest.
    """
    if name not in PEERS:
        raise unknown_name("peer", name, PEERS)
    return PEERS[name]


def missing_package(name: str) -> str | None:
    """That a package is not installed; None if it is."""
    return f"the package {name} is not installed" if find_spec(name) is None else None


def round_up(number: int, multiple: int) -> int:
    """The next multiple."""
    return -(-number // multiple) * multiple


def block_rows(matrix: Csr) -> Tensor:
    """The block row of each live block."""
    rows = torch.arange(matrix.offsets.numel() - 1, device=matrix.offsets.device)
    return rows.repeat_interleave(matrix.offsets.diff().long())


@contextmanager
def unchecked() -> Iterator[None]:
    """Within, blksprs does not look at its arguments."""
    import blksprs as bs

    bs.utils.disable_validation()
    try:
        yield
    finally:
        bs.utils.enable_validation()


def peer_providers(case: Case, tokens: int, names: list[str], seconds: float) -> list[Provider]:
    """The peers asked for, on uniform masks without ties; those that cannot run with the reason."""
    # What lies between their products is compiled, and the compiler gives up after eight shapes.
    torch.compiler.reset()
    x, made = case.input(tokens), []
    rows = sampled_rows(tokens, CHECKED_TOKENS, x.device)
    for name in names:
        kind = peer_of(name)
        facts = {"mask": "uniform"}
        provider = Provider(name, name, tied=False if case.size.gated else None, setting=facts, peer=True)
        cause = kind.refusal(case.size)
        if cause is not None:
            made.append(provider.without(cause))
            continue
        weights = case.sparse("uniform", False)
        try:
            peer = kind(case.size, tokens, seconds)
            mlp = PeerMlp(peer, case.size, weights, x)
        except torch.OutOfMemoryError:
            raise
        except Exception as fault:  # a peer may raise anything
            made.append(provider.without(first_line(fault), "failed"))
            continue
        if peer.tuned is not None:
            facts = facts | {"tuned": peer.tuned}
        expected = expected_output(x[rows], weights[0], case.size.activation)
        candidate = Candidate(mlp.run, len(weights))
        made.append(provider._replace(candidate=candidate, check=check_of(mlp.output, expected, rows), setting=facts))
    return made
