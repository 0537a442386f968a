"""The settings inside a point that came from elsewhere: their keys and values are those of the classes that read them.

A plan of this machine is not checked again: `plan.config` checked what it was made from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from blast.settings import Count, Name, NotEmpty, Pattern, Place, check, read_part
from blast.sparsity.config import SparsifyConfig
from blast.training.distillation import Distillation
from blast.training.settings import TrainingSettings

TaskName = Annotated[
    str, Pattern(r"[A-Za-z0-9][A-Za-z0-9_.-]*", "a task name of letters, digits, '_', '-' and '.'", longest=100)
]


@dataclass(frozen=True)
class EvaluationOfPoint:
    """How one point is evaluated: `blast.experiment.plan.config.Evaluation` with the tasks of its dataset alone."""

    tasks: tuple[TaskName, ...]
    batch: Count | None
    limit: Count | None
    items: Count | None
    separate_test: bool
    train: Count | None


@dataclass(frozen=True)
class SuiteOfPoint:
    """The settings of a benchmark that every suite has; the suite checks its own."""

    suite: Annotated[str, NotEmpty()]
    dtype: Name | None
    tokens: tuple[Count, ...]
    repeats: Count


PARTS = {
    "training": TrainingSettings,
    "sparsify": SparsifyConfig,
    "distillation": Distillation,
    "evaluation": EvaluationOfPoint,
}
COMMON = ("suite", "dtype", "tokens", "repeats")


def check_parts(point: Mapping[str, Any]) -> None:
    """Checks the settings inside a point, given as `Point.to_dict` gives it; the point stays as it is.

    Raises:
        BlastError: one sentence for an unknown key or a wrong value.
    """
    for name, settings in PARTS.items():
        if (given := point.get(name)) is not None:
            read_part(settings, given, Place(path=(name,)))
    if (benchmark := point.get("benchmark")) is not None:
        read_part(
            SuiteOfPoint,
            {key: value for key, value in benchmark.items() if key in COMMON},
            Place(path=("benchmark",)),
        )
    if "tokenizer" in point["data"]:
        check(Name | None, point["data"]["tokenizer"], Place(path=("data", "tokenizer")))
