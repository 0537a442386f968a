"""Block-sparse products of other projects, run as an MLP: torch's BSR kernel, stanford-stk, blksprs.

A peer is imported only if it is requested. It keeps activations in its fastest form; conversions are not timed. Its
output is checked like ours. Bias, activation and gate between the products are one compiled kernel, so that a peer
makes no unneeded passes over the hidden activations.
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
    """A product `W · h` of another project, with transposed activations.

    Attributes:
        ADDS_BIAS: Whether the product adds a bias itself.
        padded: Tokens that it computes: the requested ones, padded with zeros to a number it supports.
        tuned: Whether its tuner finished; None if it has no tuner with a time limit.
    """

    ADDS_BIAS: ClassVar[bool]
    padded: int
    tuned: bool | None

    def __init__(self, size: MlpSize, tokens: int, seconds: float) -> None:
        """Prepares the peer for `tokens` tokens; tuning takes about `seconds` at most."""

    @staticmethod
    def refusal(size: MlpSize) -> str | None:
        """The reason, in one sentence, why it cannot run an MLP of this size here; None if it can."""

    def matrix(self, matrix: Csr) -> Any:
        """Converts a matrix to the peer's form."""

    def bias(self, bias: Tensor) -> Tensor:
        """Converts a bias `[features]` to a form that can be added to activations."""

    def activations(self, x: Tensor) -> Any:
        """Converts `[features, padded]` to the peer's form."""

    def product(self, matrix: Any, h: Any, bias: Tensor | None) -> Any:
        """`W · h`, plus the bias if there is one; the first call of a shape may tune."""

    def dense(self, h: Any) -> Tensor:
        """Converts activations from the peer's form to `[features, padded]`."""


class PeerMlp:
    """An MLP built from a peer's products.

    Args:
        peer: Created for this size and the number of tokens of `x`.
        size: Size of the MLP.
        sets: Its sets of weights.
        x: `[tokens, hidden]`.
    """

    def __init__(self, peer: Peer, size: MlpSize, sets: Sequence[Weights], x: Tensor) -> None:
        self.peer, self.activation, self.tokens = peer, size.activation, x.shape[0]
        padded = torch.nn.functional.pad(x, (0, 0, 0, peer.padded - x.shape[0]))
        self.x = peer.activations(padded.t().contiguous())
        self.sets = [[peer.matrix(matrix) for matrix in weights.matrices] for weights in sets]
        self.biases = [[None if b is None else peer.bias(b) for b in weights.biases] for weights in sets]
        self.activate = torch.compile(activate, dynamic=False) if x.is_cuda else activate
        self.run(0)

    def run(self, number: int) -> Any:
        """Runs the MLP with the weight set of that number; the output is in the peer's form. This call is timed."""
        *gate_up, down = self.sets[number]
        inside, outside = (
            (self.biases[number], (None, None)) if self.peer.ADDS_BIAS else ((None, None), self.biases[number])
        )
        products = [self.peer.product(matrix, self.x, inside[0]) for matrix in gate_up]
        out = self.peer.product(down, self.activate(products, outside[0], self.activation), inside[1])
        return out if outside[1] is None else out + outside[1]

    def output(self, number: int) -> Tensor:
        """The output as `[tokens, hidden]`, for the check."""
        return self.peer.dense(self.run(number)).t()[: self.tokens]


def activate(products: list[Tensor], bias: Tensor | None, activation: str) -> Tensor:
    """Bias, activation and gate between the products."""
    *gate, up = products
    up = up if bias is None else up + bias
    return apply_activation(gate[0], activation) * up if gate else apply_activation(up, activation)


class TorchBsr:
    """`torch.sparse._triton_ops.bsr_dense_addmm`, with the parameters that torch's own tuner finds."""

    ADDS_BIAS = True

    def __init__(self, size: MlpSize, tokens: int, seconds: float) -> None:
        # Its tiles are `tokens // split` wide, a power of two. The first split is `tokens // rows of a block`.
        most = max(size.block[0], size.down_block[0])
        self.padded = round_up(tokens, most) if tokens >= most else max(16, 1 << (tokens - 1).bit_length())
        self.tuned: bool | None = True
        # Gate-up and down have different shapes, and each is tuned.
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
            self._parameters[shape], finished = tuned_parameters(matrix, h, bias, self._seconds)
            self.tuned = self.tuned and finished
        out = h.new_empty(matrix.shape[0], h.shape[1])
        meta = self._parameters[shape]
        # With beta 0 the first operand is not read.
        if bias is None:
            return bsr_dense_addmm(out, matrix, h, beta=0, out=out, meta=meta)
        return bsr_dense_addmm(bias, matrix, h, beta=1, out=out, meta=meta)

    def dense(self, h: Tensor) -> Tensor:
        return h


class Stk:
    """`stk.ops.dsd` of stanford-stk; it supports blocks of 128 and has no tuner."""

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
        # stk takes indices of 16 bits and offsets of 32.
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
    """`blksprs.ops.matmul`; activations stay in its compressed form with all blocks present.

    Data that depends on layouts only is made once and cached, as its documentation recommends. Its argument checks are
    off, since they wait for the GPU in each call. Its autotuner runs at the first product and keeps one choice for each
    block side.
    """

    ADDS_BIAS = False

    def __init__(self, size: MlpSize, tokens: int, seconds: float) -> None:
        from blksprs.ops.matmul import matmul_kernel

        self.side = size.block[0]
        self.padded, self.tuned = round_up(tokens, self.side), None
        self._layouts: dict[int, Tensor] = {}
        # Otherwise it would reuse the choice of another shape.
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
    """The peer class of a name.

    Raises:
        BlastError: for an unknown name; the message gives the nearest.
    """
    if name not in PEERS:
        raise unknown_name("peer", name, PEERS)
    return PEERS[name]


def missing_package(name: str) -> str | None:
    """A sentence that a package is not installed; None if it is."""
    return f"the package {name} is not installed" if find_spec(name) is None else None


def round_up(number: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is not below `number`."""
    return -(-number // multiple) * multiple


def block_rows(matrix: Csr) -> Tensor:
    """The block row of each live block."""
    rows = torch.arange(matrix.offsets.numel() - 1, device=matrix.offsets.device)
    return rows.repeat_interleave(matrix.offsets.diff().long())


@contextmanager
def unchecked() -> Iterator[None]:
    """Turns off the argument checks of blksprs within the body."""
    import blksprs as bs

    bs.utils.disable_validation()
    try:
        yield
    finally:
        bs.utils.enable_validation()


def peer_providers(case: Case, tokens: int, names: list[str], seconds: float) -> list[Provider]:
    """The requested peers, on uniform masks with separate gate and up; those that cannot run have the cause."""
    # `activate` is compiled. Without a reset, torch.compile falls back to eager after eight shapes.
    torch.compiler.reset()
    x, providers = case.input(tokens), []
    rows = sampled_rows(tokens, CHECKED_TOKENS, x.device)
    for name in names:
        kind = peer_of(name)
        facts = {"mask": "uniform"}
        provider = Provider(name, name, tied=False if case.size.gated else None, setting=facts, peer=True)
        cause = kind.refusal(case.size)
        if cause is not None:
            providers.append(provider.without(cause))
            continue
        weights = case.sparse("uniform", False)
        try:
            peer = kind(case.size, tokens, seconds)
            mlp = PeerMlp(peer, case.size, weights, x)
        except torch.OutOfMemoryError:
            raise
        except Exception as fault:  # a peer may raise anything
            providers.append(provider.without(first_line(fault), "failed"))
            continue
        if peer.tuned is not None:
            facts = facts | {"tuned": peer.tuned}
        expected = expected_output(x[rows], weights[0], case.size.activation)
        candidate = Candidate(mlp.run, len(weights))
        providers.append(
            provider._replace(candidate=candidate, check=check_of(mlp.output, expected, rows), setting=facts)
        )
    return providers
