"""Providers of the suite `kernels`: our variants and dense, each with weights, check and work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import blast_kernels.register  # noqa: F401  (registers torch.ops.blast.*)
import torch
from blast_kernels.common.quantize import HALVES
from blast_kernels.tables.break_even import dense_ranges, dense_wins, gpu_name
from torch import Tensor

from blast.benchmark.inputs.masks import random_masks, trained_masks
from blast.benchmark.inputs.mlp import MlpMasks, MlpSize
from blast.benchmark.inputs.weights import (
    Weights,
    copied,
    dense_mlp,
    dense_weights,
    expected_output,
    from_fp8,
    in_fp8,
    sets_needed,
    sparse_weights,
    without_dead,
)
from blast.benchmark.timing.cuda_graphs import Candidate, error_of, sampled_rows
from blast.benchmark.timing.roofline import Ceilings, Work, dense_work, sparse_work

# How many tokens are compared with the float32 reference.
CHECKED_TOKENS = 128
# A whole MLP in one launch: a trial, whose failure is recorded and stops nothing.
TRIAL = "ours_single"


class Machine(NamedTuple):
    """The GPU, its L2 cache in bytes and its measured ceilings."""

    device: torch.device
    l2_bytes: int
    ceilings: Ceilings


class Provider(NamedTuple):
    """One way to run the MLP.

    Attributes:
        name: Its name in the rows.
        key: Unique name within one run.
        candidate: What is timed; None if it cannot run.
        check: Gives the error against the reference; None if there is nothing to compare with.
        work: Its work for the roofline; None if it is not modelled.
        tied: Whether gate and up share a mask; None if the MLP has no gate or the provider has no masks.
        setting: Further facts for the rows.
        cause: Why it cannot run.
        status: `ok`, or `not run` or `failed` with a cause.
        error: The result of `check`.
        peer: Whether it comes from another project.
    """

    name: str
    key: str
    candidate: Candidate | None = None
    check: Callable[[], float] | None = None
    work: Work | None = None
    tied: bool | None = None
    setting: dict[str, Any] = {}  # noqa: RUF012  (never written to)
    cause: str | None = None
    status: str = "ok"
    error: float | None = None
    peer: bool = False

    def without(self, cause: str, status: str = "not run") -> Provider:
        """The same provider, marked as one that cannot run."""
        return self._replace(candidate=None, cause=cause, status=status)


class Case:
    """The MLP of a point with its weights; these are made on first use and kept for all numbers of tokens."""

    def __init__(
        self, architecture: str, size: MlpSize, sparsity: float, seed: int, machine: Machine, masks_folder: Path
    ) -> None:
        self.architecture, self.size, self.sparsity = architecture, size, sparsity
        self.seed, self.machine, self.masks_folder = seed, machine, masks_folder
        # Facts that identify the trained masks; empty until those are loaded.
        self.trained_facts: dict[str, Any] = {}
        self._sparse: dict[tuple[str, bool], list[Weights]] = {}
        self._skipped: dict[tuple[str, bool], tuple[list[Weights], float]] = {}
        self._fp8: dict[tuple[str, bool], list[Weights]] = {}
        self._dense: list[tuple[list[Tensor], tuple]] = []

    def input(self, tokens: int) -> Tensor:
        """Fresh random activations `[tokens, hidden]`."""
        generator = self._generator(1000 + tokens)
        shape = (tokens, self.size.hidden)
        return torch.randn(shape, generator=generator, device=self.machine.device).to(self.size.dtype)

    def sparse(self, kind: str, tied: bool) -> list[Weights]:
        """Sets of sparse weights with masks of a kind; empty if there are no trained masks."""
        if (kind, tied) not in self._sparse:
            generator = self._generator(2 * (kind == "skewed") + tied)
            count = sets_needed(self._dense_bytes * (1 - self.sparsity), self.machine.l2_bytes)
            masks = self._masks(kind, tied, count, generator)
            self._sparse[kind, tied] = [sparse_weights(self.size, mask, tied, generator) for mask in masks]
        return self._sparse[kind, tied]

    def skipped(self, kind: str, tied: bool) -> tuple[list[Weights], float]:
        """The sets of `sparse` without dead hidden blocks, and the mean share of dead ones."""
        if (kind, tied) not in self._skipped:
            made = [without_dead(weights) for weights in self.sparse(kind, tied)]
            self._skipped[kind, tied] = [weights for weights, _ in made], sum(dead for _, dead in made) / len(made)
        return self._skipped[kind, tied]

    def fp8(self, kind: str, tied: bool) -> list[Weights]:
        """The sets of `sparse` in fp8, and more of them, since each is half as large."""
        if (kind, tied) not in self._fp8:
            made = [in_fp8(weights) for weights in self.sparse(kind, tied)]
            size = sum(part.nbytes for part in (made[0].gate_up, made[0].up, made[0].down) if part is not None)
            more = sets_needed(size, self.machine.l2_bytes) - len(made)
            copies = [copied(made[number % len(made)]) for number in range(more)]
            self._fp8[kind, tied] = made + copies
        return self._fp8[kind, tied]

    @property
    def dense(self) -> list[tuple[list[Tensor], tuple]]:
        """Sets of dense weights and biases."""
        if not self._dense:
            generator = self._generator(7)
            count = sets_needed(self._dense_bytes, self.machine.l2_bytes)
            self._dense = [dense_weights(self.size, generator) for _ in range(count)]
        return self._dense

    @property
    def _dense_bytes(self) -> int:
        item = torch.empty(0, dtype=self.size.dtype).element_size()
        return (3 if self.size.gated else 2) * self.size.hidden * self.size.ffn * item

    def _masks(self, kind: str, tied: bool, count: int, generator: torch.Generator) -> list[MlpMasks]:
        size, block = self.size, self.size.block
        if kind == "trained":
            device = self.machine.device
            # Training uses one block shape for all matrices.
            if size.transposed_down and block[0] != block[1]:
                return []
            found = trained_masks(self.masks_folder, self.architecture, self.sparsity, block, tied, device)
            if found is None:
                return []
            self.trained_facts = found.facts
            return [found.layers[number % len(found.layers)] for number in range(count)]
        arguments = (kind, size.hidden, size.ffn, size.gated, tied, self.sparsity, block, generator, size.down_block)
        return [random_masks(*arguments) for _ in range(count)]

    def _generator(self, purpose: int) -> torch.Generator:
        return torch.Generator(self.machine.device).manual_seed(10_000 * self.seed + purpose)


def our_providers(
    case: Case, tokens: int, kinds: list[str], ties: list[bool], fp8: bool = False, single: bool = False
) -> list[Provider]:
    """Our providers for one number of tokens.

    These are `ours`; `ours_skipped` if hidden blocks are dead; `ours_fp8` if `fp8` is set; `ours_single` and
    `ours_single_skipped`, the same in one launch, if `single` is set; and `ours_dense_fallback` if the break-even table
    chooses dense.
    """
    x, providers = case.input(tokens), []
    rows = sampled_rows(tokens, CHECKED_TOKENS, x.device)
    for kind in kinds:
        for tied in sorted({tied and case.size.gated for tied in ties}):
            flag = tied if case.size.gated else None
            key = f"{kind} {'tied' if tied else 'untied'}"
            facts = {"mask": kind}
            weights = case.sparse(kind, tied)
            if not weights:
                folder = case.masks_folder
                cause = f"there are no masks of a trained {case.architecture} of this sparsity and block in {folder}"
                providers.append(Provider("ours", key, tied=flag, setting=facts).without(cause))
                continue
            if kind == "trained":
                facts |= case.trained_facts
            expected = expected_output(x[rows], weights[0], case.size.activation)

            def provider(
                name: str, sets: list[Weights], facts: dict, expected=expected, flag=flag, key=key, of=_fused_call
            ) -> Provider:
                call = of(x, sets, case.size)
                work = sparse_work(tokens, case.size, sets[0])
                check = check_of(call, expected, rows)
                return Provider(name, f"{name} {key}", Candidate(call, len(sets)), check, work, flag, facts)

            providers.append(provider("ours", weights, facts))
            smaller, dead = case.skipped(kind, tied)
            if dead > 0:
                providers.append(provider("ours_skipped", smaller, facts | {"dead_hidden": round(dead, 6)}))
            if single:
                for name, sets in ((TRIAL, weights), (f"{TRIAL}_skipped", smaller if dead > 0 else [])):
                    if not sets:
                        continue
                    made = provider(name, sets, facts, of=_single_call)
                    cause = _single_refusal(tokens, sets)
                    providers.append(made if cause is None else made.without(cause))
            if fp8:
                providers.append(_fp8_provider(case, x, rows, (kind, tied), expected, facts))
            gpu = gpu_name(case.machine.device)
            ranges = dense_ranges(
                case.sparsity, case.size.block, weights[0].gate, (case.size.ffn, case.size.hidden), case.size.dtype, gpu
            )
            if dense_wins(tokens, ranges):
                providers.append(_fallback(case, x, rows, weights, expected, key, flag, facts))
    return providers


def dense_providers(case: Case, tokens: int, compiled: bool) -> list[Provider]:
    """Dense with random weights: eager (cuBLAS), and under `torch.compile`."""
    x, sets, size = case.input(tokens), case.dense, case.size
    work = dense_work(tokens, size)
    reference = dense_mlp(x, *sets[0], size.activation)
    ways = {"dense_eager": dense_mlp}
    if compiled:
        # Without a reset, torch.compile falls back to eager after eight shapes.
        torch.compiler.reset()
        ways["dense_compiled"] = torch.compile(dense_mlp, dynamic=False, fullgraph=True)
    providers = []
    for name, function in ways.items():

        def call(number: int, function=function) -> Tensor:
            return function(x, *sets[number], size.activation)

        rows = torch.arange(tokens, device=x.device)
        check = check_of(call, reference.float(), rows, poison=False) if name == "dense_compiled" else None
        providers.append(Provider(name, name, Candidate(call, len(sets)), check, work))
    return providers


def first_line(fault: BaseException) -> str:
    """The type and the first line of an exception."""
    return f"{type(fault).__name__}: {(str(fault).splitlines() or [''])[0]}"


def _fused_call(x: Tensor, sets: list[Weights], size: MlpSize) -> Callable[[int], Tensor]:
    def call(number: int) -> Tensor:
        w = sets[number]
        return torch.ops.blast.block_sparse_mlp(
            x, w.gate_up, w.up, w.gate_up_row_list, w.biases[0], w.down, w.down_row_list, w.biases[1],
            size.ffn, size.hidden, size.activation, w.gate, w.gate_up_scales, w.up_scales, w.down_scales, w.down_blocks,
        )  # fmt: skip

    return call


def _single_call(x: Tensor, sets: list[Weights], size: MlpSize) -> Callable[[int], Tensor]:
    # Imported here: it needs Triton, which not every machine has.
    from blast_kernels.mlp_inference import single_launch

    # One call after the other, so all share the counters.
    counters = torch.zeros(single_launch.COUNTERS, dtype=torch.int32, device=x.device)

    def call(number: int) -> Tensor:
        w = sets[number]
        return single_launch.mlp(
            x, w.gate_up, w.up, w.gate_up_row_list, w.biases[0], w.down, w.down_row_list, w.biases[1], size.ffn,
            size.activation, w.gate, counters, w.down_blocks,
        )  # fmt: skip

    return call


def _single_refusal(tokens: int, sets: list[Weights]) -> str | None:
    from blast_kernels.mlp_inference import single_launch

    causes = (
        single_launch.refusal(tokens, w.gate_up, w.gate_up_row_list, w.down, w.down_row_list, w.gate) for w in sets
    )
    return next((cause for cause in causes if cause is not None), None)


def _fp8_provider(case: Case, x: Tensor, rows: Tensor, which: tuple[str, bool], full: Tensor, facts: dict) -> Provider:
    """Ours with fp8 weights: checked against the dequantized weights; its row has the error against the full ones."""
    name, (kind, tied) = "ours_fp8", which
    flag = tied if case.size.gated else None
    provider = Provider(name, f"{name} {kind} {'tied' if tied else 'untied'}", tied=flag, setting=facts)
    if case.size.dtype not in HALVES:
        return provider.without("fp8 weights are multiplied with float16 or bfloat16 only")
    sets = case.fp8(kind, tied)
    expected = expected_output(x[rows], from_fp8(sets[0]), case.size.activation)
    off = ((expected - full).norm() / full.norm()).item()
    call = _fused_call(x, sets, case.size)
    return provider._replace(
        candidate=Candidate(call, len(sets)),
        check=check_of(call, expected, rows),
        work=sparse_work(x.shape[0], case.size, sets[0]),
        setting=facts | {"quantization_error": off},
    )


def _fallback(
    case: Case,
    x: Tensor,
    rows: Tensor,
    weights: list[Weights],
    expected: Tensor,
    key: str,
    tied: bool | None,
    facts: dict,
) -> Provider:
    """Dense products with the masked weights, which our layer runs where sparse is slower."""
    count = min(len(weights), len(case.dense))
    sets = [([matrix.dense() for matrix in w.matrices], w.biases) for w in weights[:count]]

    def call(number: int) -> Tensor:
        return dense_mlp(x, *sets[number], case.size.activation)

    work = dense_work(x.shape[0], case.size)
    name = "ours_dense_fallback"
    return Provider(name, f"{name} {key}", Candidate(call, count), check_of(call, expected, rows), work, tied, facts)


def check_of(call: Callable[[int], Tensor], expected: Tensor, rows: Tensor, poison: bool = True) -> Callable[[], float]:
    """Gives a function that returns the error of a call against the reference on some rows."""
    return lambda: error_of(call, expected, rows, poison)
