"""How many jobs fit this machine at once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blast.experiment.plan.config import Config


def usable_cores() -> int:
    """Cores that this process may use: by its CPU affinity and the quota of its control group."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return cores


def usable_memory() -> float:
    """Free memory in GB; 4 where the system does not tell."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
        limit = Path("/sys/fs/cgroup/memory.max")
        if limit.is_file() and (text := limit.read_text().strip()) != "max":
            used = int(Path("/sys/fs/cgroup/memory.current").read_text())
            free = min(free, int(text) - used)
        return free / 1e9
    except (OSError, KeyError, ValueError):
        return 4.0


def jobs_at_once(config: Config) -> int:
    """Jobs for which cores and memory suffice; at least one."""
    return max(1, min(usable_cores() // config.threads, int(usable_memory() // config.memory_gb)))
