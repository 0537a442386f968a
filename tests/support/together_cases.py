"""Jobs of several processes, for the tests of how they are started."""

from __future__ import annotations

import os
from typing import Any

import torch

from blast.errors import BlastError
from blast.tensor_parallel.processes import Processes


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
