"""Jobs of several processes, for the tests of how they are started."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from patience import PATIENCE

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


def is_killed_while_it_tells(processes: Processes, device: torch.device, given: dict[str, Any]) -> None:
    """The first process is killed while it writes its fault, because the last one has ended with its own."""
    seen = Path(given["folder"], "half written")
    if processes.rank == processes.size - 1:
        deadline = time.monotonic() + PATIENCE
        while not seen.is_file() and time.monotonic() < deadline:
            time.sleep(0.01)
        raise BlastError("the last process cannot do it.")

    def half(file: Path, content: str | bytes, *_: Any, **__: Any) -> None:
        with file.open("w" if isinstance(content, str) else "wb") as stream:
            stream.write(content[: len(content) // 2])
        seen.touch()
        time.sleep(PATIENCE)

    Path.write_text = Path.write_bytes = half  # type: ignore[assignment]
    raise BlastError("the first process cannot do it either.")
