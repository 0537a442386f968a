"""What the `training_step` suite writes down of a workload: one entry a provider and metric."""

from __future__ import annotations

import time
from typing import Any

from blast.benchmark.step.breakdown import Meter, memory_of
from blast.benchmark.step.training_setup import TrainingSetup, Workload
from blast.benchmark.timing.interleaved import Timing

DENSE, OURS, MASKED = "dense_compiled", "ours", "masked_dense"

Entry = dict[str, Any]


class StepRows:
    """Collects the entries of one workload.

    Args:
        work: What a step is of.
        settings: As `training_step.measure`.
        started: When the point began, on the monotonic clock.
        meter: Reads bytes.

    Attributes:
        metrics: The entries.
        parts: By provider, the milliseconds of parts of a step.
        error: Of the gradients of ours.
    """

    def __init__(self, work: Workload, settings: dict[str, Any], started: float, meter: Meter) -> None:
        self.work, self.settings, self.started, self.meter = work, settings, started, meter
        self.metrics: list[Entry] = []
        self.parts: dict[str, dict[str, float]] = {}
        self.error = 0.0

    def add_step(self, name: str, timing: Timing, together: bool) -> None:
        """Time of a step, what it gets through, and the parts of it that were timed."""
        entry = self.entry(name, "step_time", "ms", timing.median, "lower", interleaved=together)
        self.metrics.append(entry | {"low": timing.low, "high": timing.high, "spread": "q20-80", "n": timing.n})
        count, unit = (1, "images/s") if self.work.vision else (self.work.length, "tokens/s")
        rate = 1000 * self.work.batch * count / timing.median
        self.metrics.append(self.entry(name, "throughput", unit, rate, "higher"))
        parts = self.parts.get(name)
        if parts:
            parts = parts | {"other": max(0.0, timing.median - sum(parts.values()))}
            self.metrics += [self.entry(name, f"time_{key}", "ms", value, "lower") for key, value in parts.items()]

    def add_memory(self, name: str, setup: TrainingSetup, before: int) -> None:
        """Bytes by phase."""
        memory = memory_of(setup, self.meter, before)
        for key, metric in (
            ("peak", "peak_bytes"), ("parameters", "parameter_bytes"), ("gradients", "gradient_bytes"),
            ("optimizer", "optimizer_bytes"), ("activations", "activation_bytes"),
        ):  # fmt: skip
            self.metrics.append(self.entry(name, metric, "bytes", float(getattr(memory, key)), "lower"))

    def late(self, name: str, metric: str = "step_time", unit: str = "ms") -> bool:
        """Whether the time is over; then the provider has an entry that says so, and the point is tried again."""
        if self.left() > 0:
            return False
        cause = "the seconds of this point were over; raise 'seconds'"
        self.missing(name, cause, metric, unit)
        self.metrics[-1]["unfinished"] = True
        return True

    def left(self) -> float:
        """Seconds that are left of those of the point."""
        return self.settings["seconds"] - (time.monotonic() - self.started)

    def missing(self, name: str, cause: str, metric: str = "step_time", unit: str = "ms") -> None:
        """Says why something was not measured."""
        self.metrics.append(self.entry(name, metric, unit, None, "lower", cause=cause) | {"status": "not run"})

    def entry(self, name: str, metric: str, unit: str, value: float | None, better: str, **facts: Any) -> Entry:
        """One entry; `facts` go into its setting."""
        facts = {"mask": self.settings["mask"], "length": self.work.length, "data": self.work.data, **facts}
        if name == OURS:
            facts |= {"fused": self.settings["fused"], "gradient_error": self.error}
        return {
            "metric": metric, "task": None, "unit": unit, "value": value, "low": None, "high": None, "spread": None,
            "n": None, "better": better, "provider": name, "tokens": self.work.batch * self.work.length,
            "batch": self.work.batch, "dtype": self.settings["dtype"], "setting": facts,
        }  # fmt: skip
