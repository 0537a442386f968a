"""Jobs of several processes, for the tests of how they are started."""

from __future__ import annotations

import os
from typing import Any

import torch

from blast.errors import BlastError
from blast.tensor_parallel.processes import Processes


def adds(processes: Processes, device: torch.device, given: dict[str, Any]) -> list[float]:
    """The sum of the numbers of the processes, as each of them sees it."""
    return processes.gather(processes.add_up(torch.tensor([float(processes.rank)], device=device)).item())


def refuses(processes: Processes, device: torch.device, given: dict[str, Any]) -> None:
    """The last process has an error of its own."""
    if processes.rank == processes.size - 1:
        raise BlastError(f"process {processes.rank} cannot do it; {given['remedy']}.")
    processes.gather("waiting")


def ends(processes: Processes, device: torch.device, given: dict[str, Any]) -> None:
    """The last process ends without a word."""
    if processes.rank == processes.size - 1:
        os._exit(7)
    processes.gather("waiting")


def breaks(processes: Processes, device: torch.device, given: dict[str, Any]) -> None:
    """The last process has a bug."""
    if processes.rank == processes.size - 1:
        raise ZeroDivisionError("a bug")
    processes.gather("waiting")
