"""Samples of processor, memory and GPU while a training runs, under the names that MLflow gives them.

psutil reads the processor and the memory, and NVML (by way of torch) the GPU. A machine may have neither.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

# Seconds to the first sample and between two; in a long training a hundredth of what has passed.
FIRST, EVERY, SHARE = 1.0, 10.0, 0.01

Sample = dict[str, float]
_said: set[str] = set()


def _say_once(line: str) -> None:
    if line not in _said:
        _said.add(line)
        print(line, flush=True)


class SystemMetrics:
    """A thread that samples, from `with` to its end.

    Args:
        tell: Gets each sample.
        readers: What is sampled; those of this machine by default.
    """

    def __init__(self, tell: Callable[[Sample], Any], readers: list[Callable[[], Sample]] | None = None) -> None:
        self._tell = tell
        self._readers = readers_of_this_machine() if readers is None else list(readers)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="system metrics")

    def __enter__(self) -> SystemMetrics:
        if self._readers:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        if self._readers:
            self._thread.join(5)

    def _run(self) -> None:
        started, pause = time.monotonic(), FIRST
        while not self._end.wait(pause):
            sample: Sample = {}
            for reader in self._readers.copy():
                try:
                    sample |= reader()
                except Exception as error:  # a driver that fails stops no training
                    self._readers.remove(reader)
                    _say_once(f"system metrics: {type(error).__name__}: {error}; the training goes on without these.")
            if sample and not self._end.is_set():
                self._tell(sample)
            pause = max(EVERY, SHARE * (time.monotonic() - started))


def readers_of_this_machine() -> list[Callable[[], Sample]]:
    """What can be sampled here; what is missing is told once."""
    found: list[Callable[[], Sample]] = []
    try:
        import psutil
    except ImportError:
        _say_once("system metrics: the package psutil is not installed, so processor and memory are not sampled.")
    else:
        found.append(_processor(psutil))
    import torch  # not above: who only reads what was told needs none

    if torch.cuda.is_available():
        try:
            import pynvml  # noqa: F401
        except ImportError:
            _say_once("system metrics: the package nvidia-ml-py is not installed, so the GPU is not sampled.")
        else:
            found.append(_gpus)
    return found


def _processor(psutil: Any) -> Callable[[], Sample]:
    process = psutil.Process(os.getpid())
    # The first call of each only starts the measurement.
    psutil.cpu_percent()
    process.cpu_percent()

    def read() -> Sample:
        memory = psutil.virtual_memory()
        return {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": round((memory.total - memory.available) / 1e6, 1),
            "system_memory_usage_percentage": memory.percent,
            "process_cpu_percentage": process.cpu_percent(),
            "process_memory_megabytes": round(process.memory_info().rss / 1e6, 1),
        }

    return read


def _gpus() -> Sample:
    """Of the GPUs that this process sees. These functions ask the driver by NVML, and start no work on a GPU."""
    import torch

    sample: Sample = {}
    for device in range(torch.cuda.device_count()):
        sample |= {
            f"gpu_{device}_utilization_percentage": float(torch.cuda.utilization(device)),
            f"gpu_{device}_memory_usage_megabytes": round(torch.cuda.device_memory_used(device) / 1e6, 1),
            f"gpu_{device}_power_usage_watts": torch.cuda.power_draw(device) / 1000,
        }
    return sample
