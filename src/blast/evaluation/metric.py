"""One metric entry of a record: a measured number with its unit, spread and count."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from blast.errors import BlastError

BETTER = ("higher", "lower")
# The learning curves are called `train_loss` and `validation_loss`.
NAMES_OF_A_PART = {"loss": "final_loss"}


def metric(
    name: str,
    value: float,
    *,
    unit: str,
    better: str,
    n: int = 1,
    stderr: float | None = None,
    task: str | None = None,
    setting: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A metric entry of a record, with `low` and `high` one standard error below and above the value.

    The interval is not clipped, so that half its width is the standard error.

    Args:
        name: Name of the metric, for instance `"top1"`.
        value: What was measured.
        unit: Its unit, for instance `"fraction"`.
        better: `"higher"` or `"lower"`.
        n: Number of independent samples (documents, images, chunks) behind the value and its error.
        stderr: Standard error in the same unit; None where there is none.
        task: Name of the evaluation task; None for our own metrics.
        setting: Other facts that a reader needs to interpret the number (window, chance level, …).

    Raises:
        BlastError: if the value is not a finite number.
    """
    label = f"{task}: {name}" if task else name
    if better not in BETTER:
        raise ValueError(f"better must be one of {BETTER}, not {better!r}")
    if not math.isfinite(value):
        raise BlastError(f"{label} is {value}, not a finite number; look at the model's training loss.")
    known = stderr is not None and math.isfinite(stderr)
    return {
        "metric": name,
        "task": task,
        "unit": unit,
        "value": float(value),
        "low": float(value - stderr) if known else None,
        "high": float(value + stderr) if known else None,
        "spread": "stderr" if known else None,
        "n": int(n),
        "better": better,
        "setting": dict(setting or {}),
    }


def of_part(part: str, entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Metric entries under names that say which part of the data they were measured on.

    Args:
        part: `"validation"` or `"train"`.
        entries: Entries as `metric` makes them.

    Returns:
        `bits_per_byte` as `validation_bits_per_byte` and so on; `loss` as `validation_final_loss`, because
        `validation_loss` is the learning curve.
    """
    return [entry | {"metric": f"{part}_{NAMES_OF_A_PART.get(entry['metric'], entry['metric'])}"} for entry in entries]
