"""The training state on disk: all that a killed run needs to resume with bit-identical results."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from blast.distributed import is_first_rank, world_size
from blast.errors import BlastError
from blast.files import remove, replacing
from blast.sparsity.sparsifier import Sparsifier
from blast.training.history import History
from blast.training.parallel import full_state, load_state

# Largest share of the time of a training that writing its state takes.
WRITING_SHARE = 0.02
# Bytes a second that a disk is taken to write until the first state is written.
ASSUMED_SPEED = 500e6


def state_bytes(model: nn.Module) -> int:
    """About how many bytes the training state of a model has: its parameters, and two moments for each."""
    return 3 * sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


class SaveInterval:
    """Says when the next training state is due, so that a large state or a slow disk does not slow the training down.

    A state is due `seconds` after the last one, and not before the time since then is so long that the next write
    takes `WRITING_SHARE` of it. The next write is taken to last as long as the last one, the first one as long as
    `ASSUMED_SPEED` makes it.

    Args:
        seconds: The shortest interval; 0 saves after every step, however long that takes.
        size: Bytes of the state, about.
        clock: Seconds since some moment.
    """

    def __init__(self, seconds: float, size: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._writing = size / ASSUMED_SPEED
        self._last = clock()

    @property
    def seconds(self) -> float:
        """From the end of the last write to the start of the next one."""
        if not self._seconds:
            return 0.0
        return max(self._seconds, self._writing * (1 - WRITING_SHARE) / WRITING_SHARE)

    @property
    def due(self) -> bool:
        """Whether it is time for the next state."""
        return self._clock() - self._last >= self.seconds

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Times a write."""
        started = self._clock()
        yield
        self._last = self._clock()
        self._writing = self._last - started


class TrainingState:
    """The training state of one run, in one file that is replaced atomically.

    Args:
        file: Path of the file.
        key: Digest of everything that determines the run. A state with another key belongs to another run and is
            discarded.

    Attributes:
        discarded: One sentence about a state that `restore` discarded; None if it discarded none.
    """

    def __init__(self, file: Path, key: str) -> None:
        self.file = Path(file)
        self.key = key
        self.discarded: str | None = None

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        sparsifier: Sparsifier | None,
        history: History,
    ) -> None:
        """Writes the state before `step`.

        The first process writes. If the model is fully sharded, every process must call it.

        Raises:
            BlastError: if the disk is full. The previous state stays.
        """
        weights, moments = full_state(model, optimizer)
        if not is_first_rank():
            return
        values = {
            "key": self.key,
            "step": step,
            "world_size": world_size(),
            "model": weights,
            "optimizer": moments,
            "sparsifier": sparsifier.state_dict() if sparsifier else None,
            "curves": history.curves,
            "masks": history.masks,
            "seconds": history.seconds,
            "spent": history.spent,
        }
        try:
            with replacing(self.file, alone=True) as temporary, temporary.open("wb") as stream:
                torch.save(values, stream)
        except (OSError, RuntimeError) as error:
            raise BlastError(
                f"{self.file}: the training state cannot be written ({error}); free some space and run again: "
                "the run resumes from its last state."
            ) from error

    def restore(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, sparsifier: Sparsifier | None, history: History
    ) -> int:
        """Restores the saved state of this run, if there is one.

        Returns:
            The next step; 0 without a saved state. A damaged state and one of another run are not used, and `discarded`
            says why.

        Raises:
            BlastError: if the state is from a different number of processes.
        """
        if self.file.is_dir():
            self.discarded = f"{self.file}: is a folder, not a training state; starting anew."
            remove(self.file)
        if not self.file.is_file():
            return 0
        try:
            # torch does not compare the checksums that it writes: a changed byte would be another weight.
            with zipfile.ZipFile(self.file) as archive:
                if broken := archive.testzip():
                    raise ValueError(broken)
            values = torch.load(self.file, map_location="cpu", weights_only=True)
            key = values["key"]
        except Exception:  # whatever a damaged file makes torch raise
            self.discarded = f"{self.file}: this training state is damaged or half-written; starting anew."
            return 0
        processes = values.get("world_size", 1)
        if key != self.key:
            self.discarded = (
                f"{self.file}: this training state is from {_difference(values, sparsifier)}; starting anew."
            )
            return 0
        if processes != world_size():
            raise BlastError(
                f"{self.file}: the training state is from {processes} processes and this run has {world_size()}; "
                "run with the same number, because each process has its share of the data, or delete the file to start "
                "again."
            )
        if sparsifier is not None:
            # Before the model: it decides whether model and optimizer hold dense matrices or live blocks.
            sparsifier.load_state_dict(values["sparsifier"])
        load_state(model, optimizer, values["model"], values["optimizer"])
        for name in ("curves", "masks", "seconds", "spent"):
            setattr(history, name, values[name])
        return values["step"]

    def remove(self) -> None:
        """Deletes the state of a finished run."""
        self.file.unlink(missing_ok=True)


def _difference(values: Mapping[str, Any], sparsifier: Sparsifier | None) -> str:
    """The first difference between the run of a saved state and this run, as far as the state shows it."""
    processes = values.get("world_size", world_size())
    if processes != world_size():
        return f"{processes} processes and this run has {world_size()}"
    saved = values.get("sparsifier")
    if saved and sparsifier:
        ours, theirs = sparsifier.config.to_dict(), saved["config"]
        for key in ours:
            if ours[key] != theirs.get(key):
                return f"another run ({key} was {theirs.get(key)!r} and is {ours[key]!r})"
    return "other settings, data or code"
