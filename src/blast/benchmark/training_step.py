"""The `training_step` suite: a whole optimisation step of a real architecture, dense, masked-dense and block-sparse.

All variants have random float32 weights, autocast, torch's flash attention, clipped gradients, fused AdamW, blocks and
loss under `torch.compile`, and whole steps replayed as CUDA graphs. Dense and ours are timed in turn in one run. Our
gradients must agree with those of masked-dense on the same weights before a point is timed.
"""

from __future__ import annotations

import gc
import time
from typing import Any

import torch

from blast.benchmark.step.breakdown import UPDATES, Meter, largest_batch, part_calls, update_cost
from blast.benchmark.step.entries import DENSE, MASKED, OURS, Entry, StepEntries
from blast.benchmark.step.training_setup import (
    TrainingSetup,
    Workload,
    fresh_model,
    live_gradients,
    random_model_masks,
    sparse_state,
    workload_of,
)
from blast.benchmark.timing.cuda_graphs import plain_memory, replay_of, time_in_turn
from blast.benchmark.timing.device import gpu_for
from blast.block_sparse.blocks import BlockShape
from blast.errors import BlastError
from blast.sparsity.config import SparsifyConfig
from blast.sparsity.one_shot import apply_masks_
from blast.sparsity.sparsifier import Sparsifier

# Gradients may be off by this even if masked-dense is exact.
LEAST_BOUND = 1e-3
BATCH_TRIALS = 8


def measure(
    architecture: str, sparsity: float, block: tuple[int, int], seed: int, settings: dict[str, Any]
) -> list[Entry]:
    """Times optimisation steps of an architecture.

    Args:
        architecture: Name of the architecture.
        sparsity: Share of empty blocks of its MLPs.
        block: Block shape `[out, in]`.
        seed: Seed of weights and masks.
        settings: `tokens` (list; a batch has as many sequences or images as fit into them), `dtype` (of autocast),
            `repeats`, and the fields of `blast.benchmark.settings.TrainingStepSettings`.

    Returns:
        By provider: `step_time` and `throughput`; `time_attention`, `time_mlp`, `time_optimizer`, and `time_other` for
        the rest of the step; `time_mask_update`; `peak_bytes`, `parameter_bytes`, `gradient_bytes`, `optimizer_bytes`,
        `activation_bytes`; or `largest_batch`.

    Raises:
        BlastError: without a GPU, for an unknown mask, or if our gradients are wrong.
    """
    device = gpu_for("training_step")
    started = time.monotonic()
    metrics: list[Entry] = []
    for tokens in settings["tokens"]:
        work = workload_of(
            architecture, tokens, settings["length"], settings["dtype"], device, settings["compiled"]
        )  # fmt: skip
        run = StepRun(work, sparsity, block, seed, settings, started)
        with plain_memory():
            metrics += run.largest() if settings["largest_batch"] else run.all()
    return metrics


class StepRun(StepEntries):
    """Measures one workload.

    Args:
        work: Model, batch and dtype of a step.
        sparsity: Share of empty blocks.
        block: Block shape.
        seed: Seed of weights and masks.
        settings: Settings of `measure`.
        started: Start of the point on the monotonic clock.
    """

    def __init__(
        self,
        work: Workload,
        sparsity: float,
        block: tuple[int, int],
        seed: int,
        settings: dict[str, Any],
        started: float,
    ) -> None:
        super().__init__(work, settings, started, Meter(work.device))
        self.sparsity, self.block, self.seed = sparsity, BlockShape(*block), seed
        self.resident: dict[str, TrainingSetup] = {}
        # Without a reset, torch.compile runs the loss eagerly after eight models.
        torch.compiler.reset()

    def all(self) -> list[Entry]:
        """Measures dense and ours in turn, then masked-dense and mask updates."""
        self.check_gradients()
        for name in (DENSE, OURS):
            if self.out_of_time(name):
                continue
            self._add_resident(name)
        self._time_resident()
        if self.settings["masked"] and not self.out_of_time(MASKED):
            self._masked()
        if self.settings["updates"]:
            self._updates()
        self.resident.clear()
        return self.metrics

    def largest(self) -> list[Entry]:
        """Measures the largest batch of dense, then of ours, each alone on the GPU."""
        for name in (DENSE, OURS):
            if self.out_of_time(name, "largest_batch", "sequences"):
                continue
            self.meter.restart()
            setup = self._make(name)
            setup.step()
            found, finished = largest_batch(setup, BATCH_TRIALS, self.seconds_left)
            unit = "images" if self.work.vision else "sequences"
            entry = self.entry(name, "largest_batch", unit, float(found), "higher", searched=finished)
            self.metrics.append(entry | {"batch": found, "tokens": found * self.work.length})
            del setup
        return self.metrics

    def check_gradients(self) -> None:
        """Compares our gradients of live blocks with masked-dense in float32, on one sequence and without compilation.

        Raises:
            BlastError: if our error is more than twice that of masked-dense in the same dtype.
        """
        one = self.work._replace(batch=1, compiled=False)
        model = fresh_model(one, self.seed)
        masks = self._masks(model)
        apply_masks_(model, masks, self.block)
        exact = live_gradients(TrainingSetup(one._replace(dtype=torch.float32), model), masks)
        allowed = 2 * _distance(live_gradients(TrainingSetup(one, model), masks), exact) + LEAST_BOUND
        sparse = sparse_state(model, masks, self.settings["fused"])
        self.error = _distance(live_gradients(TrainingSetup(one, sparse), masks), exact)
        if not self.error <= allowed:
            raise BlastError(
                f"the gradients of the sparse '{one.architecture}' are off by {self.error:.1e} from those of the "
                f"masked model in float32 (bound {allowed:.1e}); nothing was timed."
            )

    def _add_resident(self, name: str) -> None:
        """Prepares a model and keeps it. If it does not fit beside the others, those are timed and freed first."""
        known = len(self.metrics)
        try:
            self.resident[name] = self._prepare(name)
            return
        except torch.OutOfMemoryError:
            # Retried below, since the exception keeps the tensors alive until this block ends.
            del self.metrics[known:]
        if not self.resident:
            self.add_missing(name, "not even one step fits the memory of this GPU; give fewer tokens")
            return
        self._time_resident()
        self.resident.clear()
        self._add_resident(name)

    def _prepare(self, name: str) -> TrainingSetup:
        self.meter.restart()
        before = self.meter.allocated()
        setup = self._make(name)
        for _ in range(2):
            setup.step()
        self.add_memory(name, setup, before)
        if self.settings["parts"]:
            calls = part_calls(setup)
            rounds = {key: (replay_of(call), 1) for key, (call, _) in calls.items()}
            timings = time_in_turn(rounds, 20, 1.0)
            self.parts[name] = {key: timing.median * calls[key][1] for key, timing in timings.items()}
            del rounds, calls
        setup.clear()
        self.meter.restart()
        setup.replay = replay_of(setup.step)
        return setup

    def _make(self, name: str) -> TrainingSetup:
        model = fresh_model(self.work, self.seed)
        if name == OURS:
            model = sparse_state(model, self._masks(model), self.settings["fused"])
        return TrainingSetup(self.work, model)

    def _masks(self, model: torch.nn.Module) -> dict[str, torch.Tensor]:
        return random_model_masks(model, self.sparsity, tuple(self.block), self.seed, self.settings["mask"])

    def _time_resident(self) -> None:
        rounds = {name: (setup.replay, 1) for name, setup in self.resident.items()}
        if not rounds:
            return
        share = max(1.0, min(20.0, 0.3 * self.seconds_left()))
        for name, timing in time_in_turn(rounds, self.settings["repeats"], share).items():
            self.add_step(name, timing, together=len(rounds) > 1)

    def _masked(self) -> None:
        """Times the dense model with the sparsifier, which zeroes dead blocks in every step."""
        setup = self.resident.pop(DENSE, None)
        self.resident.clear()
        gc.collect()
        if setup is None:
            setup = self._make(DENSE)
        config = SparsifyConfig(
            sparsity=self.sparsity, block=self.block, steps=10**5, schedule="constant", hold=0.0, update_every=10**4,
            execution="masked",
        )  # fmt: skip
        # Only its first step updates the mask.
        setup.replay = None
        setup.before_clipping = Sparsifier(setup.model, setup.optimizer, config).step
        for _ in range(2):
            setup.step()
        self.add_memory(MASKED, setup, 0)
        share = max(1.0, min(8.0, 0.3 * self.seconds_left()))
        setup.clear()
        self.meter.restart()
        setup.replay = replay_of(setup.step)
        timing = time_in_turn({MASKED: (setup.replay, 1)}, self.settings["repeats"], share)[MASKED]
        self.add_step(MASKED, timing, together=False)

    def _updates(self) -> None:
        """Times mask updates in the masked and in the sparse state, with nothing else on the GPU."""
        self.resident.clear()
        for name, execution in ((MASKED, "masked"), (OURS, "sparse")):
            if self.out_of_time(name, "time_mask_update"):
                continue
            self.meter.restart()
            cost = update_cost(self.work, self.sparsity, self.block, self.seed, execution)
            # The first two steps of a round, and the other ones.
            steps = {f"{key}_step": getattr(cost, key) for key in ("update", "capture", "usual")}
            entry = self.entry(name, "time_mask_update", "ms", cost.total, "lower", **steps)
            self.metrics.append(entry | {"low": cost.low, "high": cost.high, "spread": "q20-80", "n": UPDATES})


def _distance(found: list[torch.Tensor], exact: list[torch.Tensor]) -> float:
    """`‖found − exact‖ / ‖exact‖` over all matrices together; infinite if an element is NaN.

    Raises:
        BlastError: if `exact` is all zero, since the ratio is then undefined.
    """
    off = sum((a.float() - b.float()).square().sum() for a, b in zip(found, exact, strict=True))
    norm = sum(b.float().square().sum() for b in exact)
    if norm == 0:
        raise BlastError("all gradients of the dense model are zero and cannot be compared; nothing was timed.")
    distance = (off / norm).sqrt().item()
    return distance if distance == distance else float("inf")
