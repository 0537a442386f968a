"""Record entries of the suite `training_step`: one for each provider and metric of a workload."""

from __future__ import annotations

import time
from typing import Any

from blast.benchmark.step.breakdown import Meter, memory_of
from blast.benchmark.step.training_setup import TrainingSetup, Workload
from blast.benchmark.timing.interleaved import Timing

DENSE, OURS, MASKED = "dense_compiled", "ours", "masked_dense"

Entry = dict[str, Any]


class StepEntries:
    """Collects the entries of one workload.

    Args:
        work: Model, batch and dtype of a step.
        settings: Settings of `training_step.measure`.
        started: Start of the point on the monotonic clock.
        meter: Reads the bytes.

    Attributes:
        metrics: The entries.
        parts: Milliseconds of the parts of a step, by provider.
        error: Error of our gradients.
    """

    def __init__(self, work: Workload, settings: dict[str, Any], started: float, meter: Meter) -> None:
        self.work, self.settings, self.started, self.meter = work, settings, started, meter
        self.metrics: list[Entry] = []
        self.parts: dict[str, dict[str, float]] = {}
        self.error = 0.0

    def add_step(self, name: str, timing: Timing, together: bool) -> None:
        """Adds step time, throughput and the parts that were timed."""
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
        """Adds the bytes by phase."""
        memory = memory_of(setup, self.meter, before)
        for key, metric in (
            ("peak", "peak_bytes"), ("parameters", "parameter_bytes"), ("gradients", "gradient_bytes"),
            ("optimizer", "optimizer_bytes"), ("activations", "activation_bytes"),
        ):  # fmt: skip
            self.metrics.append(self.entry(name, metric, "bytes", float(getattr(memory, key)), "lower"))

    def out_of_time(self, name: str, metric: str = "step_time", unit: str = "ms") -> bool:
        """Whether the point is out of time; then an unfinished entry is added, and the next run tries it again."""
        if self.seconds_left() > 0:
            return False
        cause = "the point ran out of time; raise 'seconds'"
        self.add_missing(name, cause, metric, unit)
        self.metrics[-1]["unfinished"] = True
        return True

    def seconds_left(self) -> float:
        """Seconds left for this point."""
        return self.settings["seconds"] - (time.monotonic() - self.started)

    def add_missing(self, name: str, cause: str, metric: str = "step_time", unit: str = "ms") -> None:
        """Adds an entry for a value that was not measured, with the cause."""
        self.metrics.append(self.entry(name, metric, unit, None, "lower", cause=cause) | {"status": "not run"})

    def entry(self, name: str, metric: str, unit: str, value: float | None, better: str, **facts: Any) -> Entry:
        """Makes one entry; `facts` go into its setting."""
        facts = {"mask": self.settings["mask"], "length": self.work.length, "data": self.work.data, **facts}
        if name == OURS:
            facts |= {"fused": self.settings["fused"], "gradient_error": self.error}
        return {
            "metric": metric, "task": None, "unit": unit, "value": value, "low": None, "high": None, "spread": None,
            "n": None, "better": better, "provider": name, "tokens": self.work.batch * self.work.length,
            "batch": self.work.batch, "dtype": self.settings["dtype"], "setting": facts,
        }  # fmt: skip
