"""The lines that a training tells, as metrics of MLflow."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from blast.experiment.tracking.names import legal

if TYPE_CHECKING:
    from mlflow.entities import Metric

_LONGEST = 200


def samples(lines: Iterable[dict[str, Any]]) -> list[Metric]:
    """The system metrics of some lines, where MLflow's own page of them looks. Their step is the second."""
    from mlflow.entities import Metric

    begin, found = 0.0, []
    for line in lines:
        begin = (_moment(begin_of(line)) or 1000 * begin) / 1000
        for name, value in _numbers(line.get("system")):
            moment = _moment(line)
            if moment:
                found.append(Metric(f"system/{name}", value, moment, max(0, round(moment / 1000 - begin))))
    return found


def steps(lines: Iterable[dict[str, Any]], last: dict[str, int], total: int | None) -> list[Metric]:
    """The curves of some lines, and how far the training is; each step of a metric once.

    Args:
        lines: What the training told.
        last: By metric, the last step that was sent; kept up to date. A resumed training tells some steps again.
        total: Steps of the training.
    """
    from mlflow.entities import Metric

    found = []
    for line in lines:
        done, moment = line.get("step"), _moment(line)
        if not isinstance(done, int) or not moment:
            continue
        values = {f"curves/{name}": value for name, value in _numbers(line.get("curves"))}
        values |= dict(_numbers({"progress/loss": line.get("loss")}))
        if total:
            values["progress/percent"] = round(100 * done / total, 2)
        for name, value in values.items():
            # A curve counts from 0, as in the record.
            step = done - 1
            if step > last.get(name, -1):
                last[name] = step
                found.append(Metric(name, value, moment, step))
    return found


def begin_of(line: dict[str, Any]) -> dict[str, Any]:
    """What a training told first; empty for another line."""
    begin = line.get("begin")
    return begin if isinstance(begin, dict) else {}


def _moment(line: dict[str, Any]) -> int | None:
    seconds = line.get("time")
    return int(seconds * 1000) if isinstance(seconds, int | float) and math.isfinite(seconds) else None


def _numbers(values: Any) -> list[tuple[str, float]]:
    """The finite numbers of a mapping, with names that MLflow takes."""
    if not isinstance(values, dict):
        return []
    return [
        (legal(str(name)[:_LONGEST]), float(value))
        for name, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value)
    ]
