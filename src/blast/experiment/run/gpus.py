"""The GPUs that jobs see, and the locks by which each GPU serves one job at a time.

Needs only the standard library: torch is imported by the children of a job alone.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from blast.files import FileLock


def visible_gpus() -> list[str]:
    """The GPUs that jobs see, as `CUDA_VISIBLE_DEVICES` names them; found without torch."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        names: list[str] = []
        for name in map(str.strip, named.split(",")):
            # As CUDA reads it: nothing counts from the first name on that is no device: -1, or Slurm's NoDevFiles.
            if not name or name.startswith("-") or name == "NoDevFiles":
                break
            names.append(name)
        return names
    return [str(number) for number in range(len(list(Path("/dev").glob("nvidia[0-9]*"))) or _listed())]


def _listed() -> int:
    """GPUs that the driver lists, for systems that have no file for each GPU."""
    try:
        said = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in said.splitlines())


class GpuHold:
    """GPUs that one child holds. Locks of the machine keep away the other children, and other jobs of this user.

    Args:
        names: The GPUs to choose from, as `visible_gpus` gives them.
        count: How many to hold; 0 holds none, and so does a number above the number of GPUs.
    """

    def __init__(self, names: Sequence[str], count: int) -> None:
        self.names = list(names)
        self.count = count if count <= len(self.names) else 0
        self._held: dict[str, FileLock] = {}
        self._gathering: FileLock | None = None

    @property
    def missing(self) -> int:
        """How many GPUs it still waits for."""
        return self.count - len(self._held)

    @property
    def held(self) -> list[str]:
        """The GPUs that it holds, in their order."""
        return [name for name in self.names if name in self._held]

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that show a child these GPUs alone; empty if it holds none."""
        return {"CUDA_VISIBLE_DEVICES": ",".join(self.held)} if self._held else {}

    def take(self) -> bool:
        """Takes the GPUs that are free, without waiting. Returns whether it has all that it needs."""
        if not self.missing:
            return True
        # One job at a time collects GPUs, so that no two jobs wait for each other.
        self._gathering = self._gathering or _taken(_lock_file("gathering"))
        if self._gathering is None:
            return False
        for name in self.names:
            if self.missing and name not in self._held:
                lock = _taken(_lock_file(name))
                if lock is not None:
                    self._held[name] = lock
        if self.missing:
            return False
        self._gathering.release()
        self._gathering = None
        return True

    def release(self) -> None:
        """Gives all of them back."""
        for lock in [*self._held.values(), *([self._gathering] if self._gathering else [])]:
            lock.release()
        self._held, self._gathering = {}, None


def gpus_in_use(names: Sequence[str]) -> int:
    """How many of these GPUs are held now, by this job or another one."""
    free = [lock for name in names if (lock := _taken(_lock_file(name)))]
    for lock in free:
        lock.release()
    return len(names) - len(free)


def _lock_file(name: str) -> Path:
    # Slurm numbers the GPUs of each job from 0, and has given them to this job alone.
    job = f"-slurm-{number}" if (number := os.environ.get("SLURM_JOB_ID", "")).isdecimal() else ""
    return Path(tempfile.gettempdir()) / f"blast-gpus-{os.getuid()}{job}" / f"{name.replace('/', '_')}.lock"


def _taken(file: Path) -> FileLock | None:
    """The lock on a file; None if another holds it."""
    lock = FileLock(file)
    try:
        lock.acquire(blocking=False)
    except TimeoutError:
        return None
    return lock
