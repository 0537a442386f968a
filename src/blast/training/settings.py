"""Settings of a training run."""

from __future__ import annotations

import dataclasses
import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from blast.errors import BlastError, unknown_name

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16")
# How several processes train one model; see `blast.training.parallel`.
PARALLEL = ("average", "ddp", "fully_shard")
NAMES = {"dtype": ("dtype of training", DTYPES), "parallel": ("way to train in parallel", PARALLEL)}


@dataclass(frozen=True)
class TrainingSettings:
    """How a model is trained; the same for every method of a grid.

    Attributes:
        steps: Optimisation steps.
        batch: Sequences or images a step.
        length: Tokens a sequence; not used for images.
        learning_rate: Peak of the learning rate.
        warmup: Share of the steps over which the learning rate rises linearly; it then falls along a cosine.
        final_learning_rate: Share of the peak that is left at the last step.
        weight_decay: Of AdamW, on matrices only.
        clip: Largest norm of the gradient.
        evaluate_every: Steps between two evaluations for the learning curve.
        evaluate_limit: Sequences or images of such an evaluation.
        dtype: What products are made in: `float32`, or `bfloat16` by autocast; weights, gradients and the optimizer's
            state are float32 in both.
        compile: Whether the blocks of the model and the loss run under `torch.compile`.
        cuda_graphs: Whether steps are replayed as CUDA graphs (on one GPU; elsewhere it makes no difference).
        deterministic: Whether torch is asked for deterministic algorithms on a GPU; on a CPU it always is.
        spike: Nats above the usual loss from which ten losses in a row stop the run; 0 never does.
        checkpoint_seconds: Seconds between two savings of the training state; changes no result.
        processes: Processes that the batch is cut over, one a GPU where there are any; changes no result beyond
            rounding.
        parallel: How they train: `average` (each holds the model, `blast.average_gradients`), `ddp`
            (`DistributedDataParallel`) or `fully_shard` (FSDP2: each holds a part). The last two stay masked-dense.
    """

    steps: int
    batch: int
    learning_rate: float
    length: int = 128
    warmup: float = 0.05
    final_learning_rate: float = 0.05
    weight_decay: float = 0.1
    clip: float = 1.0
    evaluate_every: int = 100
    evaluate_limit: int = 64
    spike: float = 3.0
    dtype: str = "float32"
    compile: bool = False
    cuda_graphs: bool = False
    deterministic: bool = True
    checkpoint_seconds: float = 20.0
    processes: int = 1
    parallel: str = "average"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainingSettings:
        """Reads a mapping.

        Raises:
            BlastError: on an unknown or missing key, or a value that is not positive.
        """
        fields = {f.name: f for f in dataclasses.fields(cls)}
        for key, value in values.items():
            if key not in fields:
                raise unknown_name("training setting", key, fields)
            if key in NAMES:
                what, known = NAMES[key]
                if value not in known:
                    raise unknown_name(what, str(value), known)
                continue
            if isinstance(fields[key].default, bool):
                if not isinstance(value, bool):
                    raise BlastError(f"training setting '{key}' is {value!r}; give true or false.")
                continue
            if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
                raise BlastError(f"training setting '{key}' is {value!r}; give a number that is not negative.")
        for key in ("steps", "batch", "learning_rate"):
            if key not in values:
                raise BlastError(f"training setting '{key}' is missing; add it under 'training' in the config.")
            if values[key] <= 0:
                raise BlastError(f"training setting '{key}' is {values[key]}; give a number above zero.")
        processes = values.get("processes", 1)
        if not isinstance(processes, int) or processes < 1:
            raise BlastError(f"training setting 'processes' is {processes}; give a whole number, 1 or more.")
        if values["batch"] % processes:
            raise BlastError(
                f"training setting 'batch' is {values['batch']}, which {processes} processes cannot share equally; "
                "make it a multiple of 'processes'."
            )
        return cls(**values)

    def autocast(self, device: torch.device) -> torch.autocast:
        """A context for the forward pass, in which products are made in `dtype`."""
        import torch  # a grid is planned without it

        return torch.autocast(device.type, torch.bfloat16, enabled=self.dtype == "bfloat16")

    def algorithms(self, device: torch.device) -> AbstractContextManager[None]:
        """A context for whole steps, in which torch's algorithms are deterministic where that is asked for."""
        from blast.training.determinism import deterministic_algorithms

        return deterministic_algorithms(self.deterministic or device.type == "cpu")

    def rate(self, step: int) -> float:
        """Learning rate of a step (counted from 0): linear warm-up, then a cosine."""
        rise = max(1, round(self.warmup * self.steps))
        if step < rise:
            return self.learning_rate * (step + 1) / rise
        progress = (step - rise) / max(1, self.steps - rise)
        floor = self.final_learning_rate
        return self.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))
