"""Providers of the suite `training_mlp`, which run an MLP forward and backward: ours, dense and stanford-stk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import blast_kernels.mlp_training.ops  # noqa: F401  (registers torch.ops.blast.*)
import torch
from blast_kernels.mlp_training.heuristics import group_members
from blast_kernels.mlp_training.index_lists import index_lists_on_device
from torch import Tensor

from blast.benchmark.inputs.mlp import MlpSize
from blast.benchmark.inputs.weights import Csr, Weights, dense_mlp, dense_weights
from blast.benchmark.providers.mlp_inference import Provider, first_line
from blast.benchmark.providers.peers import PeerMlp, Stk, block_rows
from blast.benchmark.timing.cuda_graphs import Candidate, poisoned_memory

Step = Callable[[int], list[Tensor]]


class Task(NamedTuple):
    """The inputs of a provider: size of the MLP, activations `[tokens, hidden]` and gradient of the output."""

    size: MlpSize
    x: Tensor
    grad: Tensor


def our_provider(task: Task, weights: Weights, expected: list[Tensor], facts: dict[str, Any]) -> Provider:
    """Ours: `blast::block_sparse_mlp_training` and its backward pass. `facts` go into the rows."""
    *gate_up, down = [matrix.values.detach().requires_grad_() for matrix in weights.matrices]
    biases = [bias.detach().requires_grad_() for bias in weights.biases if bias is not None]
    indices = [(matrix.offsets, matrix.indices) for matrix in weights.matrices]
    side = task.size.block[0]
    lists = index_lists_on_device(
        indices[:-1],
        indices[-1],
        weights.matrices[0].cols,
        weights.gate == "tied",
        lambda in_up, in_down: group_members(side, in_up, in_down),
    )
    x = task.x.detach().requires_grad_()

    def step(number: int) -> list[Tensor]:
        both = biases or (None, None)
        y, _ = torch.ops.blast.block_sparse_mlp_training(
            x, gate_up, down, both[0], both[1], list(lists), task.size.activation, weights.gate
        )
        return [y, *torch.autograd.grad(y, [x, *gate_up, down, *biases], task.grad)]

    tied = weights.gate == "tied" if task.size.gated else None
    key = f"ours {facts['mask']} {'tied' if tied else 'untied'}"
    return Provider("ours", key, Candidate(step, 1), check_of(step, expected), None, tied, facts)


def dense_providers(task: Task, generator: torch.Generator, compiled: bool) -> list[Provider]:
    """Dense with random weights: eager (cuBLAS), and under `torch.compile`, which is compared with eager."""
    matrices, pair = dense_weights(task.size, generator)
    matrices = [matrix.requires_grad_() for matrix in matrices]
    biases = [bias.requires_grad_() for bias in pair if bias is not None]
    x = task.x.detach().requires_grad_()
    both = tuple(biases) or (None, None)

    def stepping(function: Callable[..., Tensor]) -> Step:
        def step(number: int) -> list[Tensor]:
            y = function(x, matrices, both, task.size.activation)
            return [y, *torch.autograd.grad(y, [x, *matrices, *biases], task.grad)]

        return step

    providers = [Provider("dense_eager", "dense_eager", Candidate(stepping(dense_mlp), 1))]
    if compiled:
        # Without a reset, torch.compile falls back to eager after eight shapes.
        torch.compiler.reset()
        step = stepping(torch.compile(dense_mlp, dynamic=False, fullgraph=True))

        def check() -> float:
            # Compiled code does not run on poisoned memory, since that would compile it again.
            return worst_error(step(0), providers[0].candidate.call(0))

        providers.append(Provider("dense_compiled", "dense_compiled", Candidate(step, 1), check))
    return providers


def stk_provider(task: Task, weights: Weights, expected: list[Tensor]) -> Provider:
    """stk's products with its own gradients; activations stay transposed, as stk is fastest with them."""
    facts = {"mask": "uniform"}
    provider = Provider("stk", "stk", tied=False if task.size.gated else None, setting=facts, peer=True)
    cause = Stk.refusal(task.size)
    if cause is not None:
        return provider.without(cause)
    try:
        torch.compiler.reset()
        step = _stk_step(task, weights)
    except torch.OutOfMemoryError:
        raise
    except Exception as fault:  # a peer may raise anything
        return provider.without(first_line(fault), "failed")
    return provider._replace(candidate=Candidate(step, 1), check=lambda: worst_error(step(0), expected))


def _stk_step(task: Task, weights: Weights) -> Step:
    tokens, leaves = task.x.shape[0], [matrix.values.detach().requires_grad_() for matrix in weights.matrices]
    swapped = [matrix._replace(values=leaf) for matrix, leaf in zip(weights.matrices, leaves, strict=True)]
    biases = tuple(None if bias is None else bias.detach().requires_grad_() for bias in weights.biases)
    leaf_biases = [bias for bias in biases if bias is not None]
    peer = Stk(task.size, tokens, 0.0)
    mlp = PeerMlp(peer, task.size, [weights._replace(matrices=tuple(swapped), biases=biases)], task.x)
    mlp.x = mlp.x.detach().requires_grad_()  # [hidden, padded]
    grad = torch.nn.functional.pad(task.grad, (0, 0, 0, peer.padded - tokens)).t().contiguous()

    def step(number: int) -> list[Tensor]:
        y = mlp.run(0)
        found = torch.autograd.grad(y, [mlp.x, *leaves, *leaf_biases], grad)
        return [y.t()[:tokens], found[0].t()[:tokens], *found[1:]]

    return step


def expected_step(task: Task, weights: Weights) -> list[Tensor]:
    """The reference in float32: output, then gradients of the input, of the live blocks and of the biases.

    It uses plain PyTorch on dense weights. Gradients in dead hidden blocks are zero.
    """
    x = task.x.float().requires_grad_()
    matrices = [matrix.dense().float().requires_grad_() for matrix in weights.matrices]
    biases = [bias.float().requires_grad_() for bias in weights.biases if bias is not None]
    y = dense_mlp(x, matrices, tuple(biases) or (None, None), task.size.activation)
    x_grad, *found = torch.autograd.grad(y, [x, *matrices, *biases], task.grad.float())
    pairs = zip(found, weights.matrices, strict=False)
    blocks = [_at_live_blocks(dense, matrix) for dense, matrix in pairs]
    return [y.detach(), x_grad, *blocks, *found[len(matrices) :]]


def _at_live_blocks(dense: Tensor, matrix: Csr) -> Tensor:
    _, b_out, b_in = matrix.values.shape
    tiled = dense.view(dense.shape[0] // b_out, b_out, matrix.cols, b_in).transpose(1, 2)
    return tiled[block_rows(matrix), matrix.indices.long()]  # [nnz, b_out, b_in]


def check_of(step: Step, expected: list[Tensor]) -> Callable[[], float]:
    """Gives a function that returns the largest error of a step whose buffers start as NaN."""

    def check() -> float:
        with poisoned_memory():
            found = step(0)
        return worst_error(found, expected)

    return check


def worst_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest `‖out − expected‖ / ‖expected‖` of output and gradients; infinite if an element is NaN."""
    errors = []
    for out, reference in zip(found, expected, strict=True):
        if out.isnan().any():
            return float("inf")
        scale = reference.float().norm().clamp_min(torch.finfo(torch.float32).tiny)
        errors.append(((out.float() - reference.float()).norm() / scale).item())
    return max(errors)
