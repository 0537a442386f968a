"""Breakdown of a training step: time of its parts, bytes by phase, largest batch and cost of a mask update."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from blast.benchmark.step.training_setup import CLIP, TrainingSetup, Workload, fresh_model
from blast.block_sparse.blocks import BlockShape
from blast.model.discovery import find_mlps
from blast.sparsity.config import SparsifyConfig
from blast.sparsity.sparsifier import Sparsifier
from blast.training.language_loss import token_logits
from blast.training.step import OptimizationStep

# How many mask updates are timed, and how many steps lie between two of them.
UPDATES, UPDATE_EVERY = 12, 4


class Memory(NamedTuple):
    """Bytes of one model in training; `activations` are the tensors saved for the backward pass."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    peak: int


class Meter:
    """Bytes of tensors on a GPU, read from torch's allocator."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def allocated(self) -> int:
        """Bytes allocated now."""
        torch.cuda.synchronize(self.device)
        return torch.cuda.memory_allocated(self.device)

    def peak(self) -> int:
        """Most bytes allocated since `restart`."""
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device)

    def restart(self) -> None:
        """Frees unused memory and resets the peak."""
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)


def memory_of(setup: TrainingSetup, meter: Meter, before: int) -> Memory:
    """Bytes by phase of a step.

    Args:
        setup: Setup that has run a step, so that code is compiled and moments exist.
        meter: Reads the bytes.
        before: Bytes allocated before the model was built; they are not counted.
    """
    setup.clear()
    meter.restart()
    idle = meter.allocated()
    loss = setup.forward()
    activations = meter.allocated() - idle
    loss.backward()
    del loss
    if setup.before_clipping is not None:
        setup.before_clipping()
    setup.update()
    peak = meter.peak() - before
    state = [value for values in setup.optimizer.state.values() for value in values.values()]
    return Memory(
        parameters=_bytes(setup.model.parameters()),
        gradients=_bytes([p.grad for p in setup.parameters if p.grad is not None]),
        optimizer=_bytes([value for value in state if isinstance(value, Tensor)]),
        activations=activations,
        peak=peak,
    )


def part_calls(setup: TrainingSetup) -> dict[str, tuple[Callable[[], None], int]]:
    """Calls that time the parts of a step: `attention` and `mlp` forward and backward, and `optimizer`.

    Attention (with its projections) and MLP are those of one layer. Each runs alone on its inputs in the model and is
    compiled like the model. The number beside a call is how many layers have the part. `optimizer` includes gradient
    clipping. The rest of a step is embeddings, norms, head and loss.
    """
    calls: dict[str, tuple[Callable[[], None], int]] = {}
    attention = [module for module in setup.model.modules() if type(module).__name__.endswith("Attention")]
    mlps = [setup.model.get_submodule(name) for name in mlp_names(setup.model)]
    for name, modules in (("attention", attention), ("mlp", mlps)):
        if modules:
            calls[name] = (_alone(setup, modules[0]), len(modules))
    setup.step()
    calls["optimizer"] = (setup.update, 1)
    return calls


def mlp_names(model: nn.Module) -> list[str]:
    """Names of the MLPs of a model in its dense or sparse state."""
    from blast.model.module_replacement import sparse_layers

    found = dict.fromkeys(mlp.name for mlp in find_mlps(model))
    for name in sparse_layers(model):
        found[name.rpartition(".")[0]] = None
    return list(found)


def _alone(setup: TrainingSetup, module: nn.Module) -> Callable[[], None]:
    """Forward and backward of a module alone, on its inputs in a step."""
    caught: list[tuple] = []

    def catch(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        caught.append((args, kwargs))

    device, dtype = setup.workload.device, setup.workload.dtype
    handle = module.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        # Compiled blocks do not call hooks.
        with torch.no_grad(), torch.autocast(device.type, dtype), torch.compiler.set_stance("force_eager"):
            model = setup.model
            model(setup.inputs) if setup.workload.vision else token_logits(model, setup.inputs)
    finally:
        handle.remove()
    leaves: dict[int, Tensor] = {}

    def as_leaf(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        # One tensor may be query, key and value: it becomes one leaf.
        if id(value) not in leaves:
            leaves[id(value)] = value.detach().clone().requires_grad_()
        return leaves[id(value)]

    args, kwargs = tree_map(as_leaf, caught[0])
    run = torch.compile(module, dynamic=False) if setup.workload.compiled else module
    wanted = [*leaves.values(), *(p for p in module.parameters() if p.requires_grad)]
    grads: list[Tensor] = []

    def both() -> None:
        with torch.autocast(device.type, dtype):
            out = next(leaf for leaf in tree_flatten(run(*args, **kwargs))[0] if isinstance(leaf, Tensor))
        if not grads:
            grads.append(torch.randn_like(out))
        torch.autograd.grad(out, wanted, grads[0], allow_unused=True)

    return both


def largest_batch(setup: TrainingSetup, most_trials: int, left: Callable[[], float]) -> tuple[int, bool]:
    """The largest batch whose step fits the memory, to within a quarter, and whether the search finished.

    Args:
        setup: Setup whose own batch fits.
        most_trials: Most batch sizes to try.
        left: Gives the seconds that are left.
    """
    good, bad = setup.workload.batch, None
    for _ in range(most_trials):
        if bad is not None and bad - good <= max(1, good // 4):
            return good, True
        if left() <= 0:
            break
        tried = 2 * good if bad is None else (good + bad) // 2
        if _fits(setup, tried):
            good = tried
        else:
            bad = tried
    return good, bad is not None and bad - good <= max(1, good // 4)


class UpdateCost(NamedTuple):
    """Cost of a mask update in ms: the update step and the next one, each minus an ordinary step.

    Attributes:
        total: Median of that cost over all rounds; a round is the steps from one update to the next.
        update: Time of the step with the update.
        capture: Time of the step after it; in the sparse state it captures new CUDA graphs and replays them.
        usual: Time of an ordinary step.
        low: 20 % quantile of the cost over rounds.
        high: 80 % quantile. The work is on the CPU, so other processes on the machine change it.
    """

    total: float
    update: float
    capture: float
    usual: float
    low: float
    high: float


def update_cost(work: Workload, sparsity: float, block: BlockShape, seed: int, execution: str) -> UpdateCost:
    """Times mask updates of the training loop with CUDA graphs; `swap` growth keeps the number of live blocks.

    The cost includes the choice of blocks. In the sparse state it also includes the dense gradient, the new layout, the
    capture of new graphs, and launches of clipping and optimizer outside of a graph. Times are medians over rounds.

    Args:
        work: Model, batch and dtype of a step.
        sparsity: From the first step on.
        block: Block shape.
        seed: Seed of the weights.
        execution: `masked` or `sparse`.
    """
    setup = TrainingSetup(work, fresh_model(work, seed))
    config = SparsifyConfig(
        sparsity=sparsity, block=block, steps=10 * UPDATES * UPDATE_EVERY, schedule="constant", hold=0.0,
        update_every=UPDATE_EVERY, grow="swap", execution=execution,
    )  # fmt: skip
    sparsifier = Sparsifier(setup.model, setup.optimizer, config)
    step = OptimizationStep(setup.model, setup.optimizer, setup.loss_of, CLIP, sparsifier, graphs=True)
    batch = setup.inputs, setup.targets
    rounds = []
    for _ in range(UPDATES + 1):
        took = []
        for _ in range(UPDATE_EVERY):
            started = time.perf_counter()
            step.run(batch)
            synchronize(work.device)
            took.append(1000 * (time.perf_counter() - started))
        rounds.append(took)
    # The first round compiles kernels and fills the allocator, so it is dropped.
    steps = [statistics.median(took) for took in zip(*rounds[1:], strict=True)]
    usual = statistics.median(steps[2:])
    costs = [max(0.0, sum(took[:2]) - 2 * usual) for took in rounds[1:]]
    low, *_, high = statistics.quantiles(costs, n=5, method="inclusive")
    return UpdateCost(statistics.median(costs), *steps[:2], usual, low, high)


def synchronize(device: torch.device) -> None:
    """Waits until the GPU has finished all launched work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _fits(setup: TrainingSetup, batch: int) -> bool:
    try:
        setup.set_batch(batch)
        setup.step()
    except torch.OutOfMemoryError:
        fits = False
    else:
        fits = True
    setup.clear()
    gc.collect()
    synchronize(setup.workload.device)
    torch.cuda.empty_cache()
    return fits


def _bytes(tensors: Sequence[Tensor]) -> int:
    """Bytes of tensors; each tensor is counted once."""
    return sum({id(tensor): tensor.nbytes for tensor in tensors}.values())
