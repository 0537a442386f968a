"""The training state on disk: everything that a killed run needs to go on as if nothing had happened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from blast.distributed import is_first_rank, world_size
from blast.errors import BlastError
from blast.files import replacing
from blast.sparsity.sparsifier import Sparsifier
from blast.training.history import History
from blast.training.parallel import put_back, whole_state


class TrainingState:
    """One file, replaced whole.

    Args:
        file: Where it lies.
        key: Digest of what decides the run; a state with another key belongs to another run and is not used.
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
        """Writes the state before `step`; of several processes the first one does, with all of them for one in parts.

        Raises:
            BlastError: if the disk is full; the state before stays.
        """
        weights, moments = whole_state(model, optimizer)
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
                "the run goes on from its last state."
            ) from error

    def restore(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, sparsifier: Sparsifier | None, history: History
    ) -> int:
        """Puts a saved state back, if there is one of this run.

        Returns:
            The step to go on with; 0 if there was none. Where there was one of another run, `discarded` says so in one
            sentence.

        Raises:
            BlastError: if the file is damaged, or this run has another number of processes than it had.
        """
        if not self.file.is_file():
            return 0
        try:
            values = torch.load(self.file, map_location="cpu", weights_only=True)
            key = values["key"]
        except Exception as error:
            raise BlastError(
                f"{self.file}: the training state is damaged or half-written; delete it and run again: "
                "this run starts anew, others are not touched."
            ) from error
        processes = values.get("world_size", 1)
        if key != self.key:
            self.discarded = f"{self.file}: this training state is of {_difference(values, sparsifier)}; starting anew."
            return 0
        if processes != world_size():
            raise BlastError(
                f"{self.file}: the training state is that of {processes} processes and this run has {world_size()}; "
                "run with as many, since each has its share of the data, or delete the file to start anew."
            )
        if sparsifier is not None:
            # First: it decides whether the model and the optimizer hold dense matrices or live blocks.
            sparsifier.load_state_dict(values["sparsifier"])
        put_back(model, optimizer, values["model"], values["optimizer"])
        for name in ("curves", "masks", "seconds", "spent"):
            setattr(history, name, values[name])
        return values["step"]

    def remove(self) -> None:
        """Deletes the state of a finished run."""
        self.file.unlink(missing_ok=True)


def _difference(values: Mapping[str, Any], sparsifier: Sparsifier | None) -> str:
    """What sets the run that a state is of apart from this one, as far as the state tells."""
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
