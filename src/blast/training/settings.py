"""Settings of a training run."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from blast.errors import BlastError
from blast.settings import Bounds, Count, Later, Place, Share, check_fields, read

if TYPE_CHECKING:
    import torch

NotNegative = Annotated[float, Bounds(ge=0)]
# How several processes train one model; see `blast.training.parallel`.
Parallel = Literal["average", "ddp", "fully_shard"]
PARALLEL = get_args(Parallel)
PLACE = Place("training setting")


@dataclass(frozen=True)
class TrainingSettings:
    """How a model is trained; the same for every method of a grid.

    Attributes:
        steps: Optimisation steps.
        batch: Sequences or images a step.
        learning_rate: Peak of the learning rate.
        length: Tokens a sequence; not used for images.
        warmup: Share of the steps over which the learning rate rises linearly.
        learning_rate_schedule: What follows the warm-up. `cosine`: it falls along a half cosine. `wsd` (warm-up,
            stable, decay): it stays at its peak, then falls linearly over the last `decay` steps. With `wsd` the masks
            of a pruned run are fixed when the decay begins, unless the config sets `hold`.
        decay: Share of the steps, at the end, over which `wsd` lowers the learning rate; not used by `cosine`.
        final_learning_rate: Share of the peak that is left at the last step.
        weight_decay: Weight decay of AdamW, on matrices only.
        clip: Largest norm of the gradient.
        evaluate_every: Steps between two evaluations for the learning curve.
        evaluate_limit: Sequences or images of such an evaluation.
        spike: Nats above the usual loss, or above the first loss and that of guessing. Ten losses in a row above one of
            them stop the run; 0 never stops it.
        dtype: `bfloat16` runs products in bfloat16 by autocast. Weights, gradients and optimizer state are float32
            with both.
        compile: Whether the blocks of the model and the loss run under `torch.compile`.
        cuda_graphs: Whether steps are replayed as CUDA graphs on one GPU; without a GPU it has no effect.
        deterministic: Whether torch uses deterministic algorithms on a GPU; on a CPU it always does.
        checkpoint_seconds: Least seconds between two saves of the training state; changes no result. A large state is
            saved less often, so that writing takes 2 % of the time at most; 0 saves after every step.
        processes: Processes that share the batch, one a GPU where there are GPUs; results differ by rounding only.
        parallel: How several processes train. `average`: each holds the model, `blast.average_gradients`. `ddp`:
            `DistributedDataParallel`. `fully_shard`: FSDP2, each holds a part. The last two stay masked-dense.

    Raises:
        BlastError: if a value has the wrong type or is out of its range.
    """

    steps: Count
    batch: Count
    learning_rate: Annotated[float, Bounds(gt=0)]
    length: Count = 128
    warmup: Share = 0.05
    learning_rate_schedule: Annotated[Literal["cosine", "wsd"], Later()] = "cosine"
    decay: Annotated[Share, Later()] = 0.25
    final_learning_rate: NotNegative = 0.05
    weight_decay: NotNegative = 0.1
    clip: NotNegative = 1.0
    evaluate_every: Count = 100
    evaluate_limit: Count = 64
    spike: NotNegative = 3.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    cuda_graphs: bool = False
    deterministic: bool = True
    checkpoint_seconds: NotNegative = 20.0
    processes: Count = 1
    parallel: Parallel = "average"

    def __post_init__(self) -> None:
        check_fields(self, PLACE.kind)
        if self.batch % self.processes:
            raise BlastError(
                f"the training setting 'batch' is {self.batch}, which {self.processes} processes cannot share equally; "
                "make it a multiple of 'processes'."
            )
        if self.learning_rate_schedule == "wsd" and self.warmup + self.decay > 1:
            raise BlastError(
                f"the training settings 'warmup' {self.warmup:g} and 'decay' {self.decay:g} together exceed the run; "
                "lower one of them, so that their sum is at most 1."
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainingSettings:
        """Reads a mapping.

        Raises:
            BlastError: on an unknown or missing key, or a wrong value.
        """
        return read(cls, values, PLACE)

    def autocast(self, device: torch.device) -> torch.autocast:
        """A context for the forward pass, in which products are made in `dtype`."""
        import torch  # a grid is planned without it

        return torch.autocast(device.type, torch.bfloat16, enabled=self.dtype == "bfloat16")

    def algorithms(self, device: torch.device) -> AbstractContextManager[None]:
        """A context for whole steps, in which torch's algorithms are deterministic where that is asked for."""
        from blast.training.determinism import deterministic_algorithms

        return deterministic_algorithms(self.deterministic or device.type == "cpu")

    def rate(self, step: int) -> float:
        """Learning rate of a step (counted from 0): linear warm-up, then `learning_rate_schedule`.

        Sources: a cosine (arXiv 1608.03983); warm-up, stable, decay (arXiv 2404.06395).
        """
        rise = max(1, round(self.warmup * self.steps))
        if step < rise:
            return self.learning_rate * (step + 1) / rise
        floor = self.final_learning_rate
        if self.learning_rate_schedule == "wsd":
            fall = round(self.decay * self.steps)
            left = min(1.0, (self.steps - step) / max(1, fall))
        else:
            progress = (step - rise) / max(1, self.steps - rise)
            left = 0.5 * (1 + math.cos(math.pi * progress))
        return self.learning_rate * (floor + (1 - floor) * left)
