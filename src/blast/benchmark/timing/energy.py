"""Energy of a GPU while it works: from the counter of the driver, else from sampled power."""

from __future__ import annotations

import statistics
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

# Seconds between two samples of the power, and between two readings of the counter while the GPU is idle.
SAMPLE, IDLE = 0.1, 1.0
UNAVAILABLE = "not available: neither nvidia-ml-py nor nvidia-smi reads this GPU"


class Energy(NamedTuple):
    """Energy of some work. Nothing is subtracted for what the GPU takes while it is idle.

    Attributes:
        joules: Energy of the GPU from the start of the work to its end.
        seconds: How long that took.
        idle_watts: Power of the GPU just before, when it did nothing.
        source: `counter` (the energy counter of the driver) or `sampled` (mean of sampled power times the time).
    """

    joules: float
    seconds: float
    idle_watts: float
    source: str


class EnergyMeter:
    """Measures one GPU.

    Args:
        device: The GPU.

    Attributes:
        source: `counter`, `sampled`, or None if the energy of this GPU is not available.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._read, self.source = _reader(device)

    def measure(self, work: Callable[[], Any], seconds: float = 2.0) -> tuple[Energy, int] | None:
        """Repeats some work for a while.

        Args:
            work: What to run; it is run once before.
            seconds: How long to repeat it, at least.

        Returns:
            The energy, and how often the work was run; None if it is not available.
        """
        if self._read is None:
            return None
        work()
        self._wait()
        _, idle, rest = self._over(lambda: time.sleep(IDLE))
        runs, joules, taken = self._over(lambda: self._repeat(work, seconds))
        return Energy(joules, taken, idle / rest, str(self.source)), runs

    def _repeat(self, work: Callable[[], Any], seconds: float) -> int:
        runs, end = 0, time.perf_counter() + seconds
        while runs == 0 or time.perf_counter() < end:
            work()
            runs += 1
            # Launches run ahead of the GPU.
            self._wait()
        return runs

    def _over(self, work: Callable[[], Any]) -> tuple[Any, float, float]:
        """Runs some work; what it returns, its joules and its seconds."""
        assert self._read is not None
        if self.source == "sampled":
            with _Sampler(self._read) as sampler:
                start = time.perf_counter()
                found = work()
                taken = time.perf_counter() - start
            return found, sampler.watts * taken, taken
        before, start = self._read(), time.perf_counter()
        found = work()
        taken = time.perf_counter() - start
        return found, self._read() - before, taken

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


class _Sampler:
    """Reads the power in a thread."""

    def __init__(self, read: Callable[[], float]) -> None:
        self._read, self._found = read, [read()]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def watts(self) -> float:
        return statistics.fmean(self._found)

    def _run(self) -> None:
        while not self._stop.wait(SAMPLE):
            self._found.append(self._read())

    def __enter__(self) -> _Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def _reader(device: torch.device) -> tuple[Callable[[], float] | None, str | None]:
    """A function that reads the joules of the counter, or the watts, and which of both it is."""
    if device.type != "cuda":
        return None, None
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        try:
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
            return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3, "counter"
        except pynvml.NVMLError:
            pynvml.nvmlDeviceGetPowerUsage(handle)
            return lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1e3, "sampled"
    except Exception:
        pass  # not installed, or the driver does not answer; the command of the driver may
    return _reader_by_command(f"GPU-{torch.cuda.get_device_properties(device).uuid}")


def _reader_by_command(gpu: str) -> tuple[Callable[[], float] | None, str | None]:
    command = ["nvidia-smi", "--query-gpu=power.draw", "--format=csv,noheader,nounits", "-i", gpu]

    def watts() -> float:
        return float(subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout)

    try:
        watts()
    except (OSError, subprocess.SubprocessError, ValueError):
        return None, None
    return watts, "sampled"
