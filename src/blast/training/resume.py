"""The training state on disk: everything that a killed run needs to go on as if nothing had happened."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from blast.errors import BlastError
from blast.sparsity.sparsifier import Sparsifier

if TYPE_CHECKING:
    from blast.training.loop import History


class TrainingState:
    """One file, replaced whole.

    Args:
        file: Where it lies.
        key: Digest of what decides the run; a state with another key belongs to another run and is not used.
    """

    def __init__(self, file: Path, key: str) -> None:
        self.file = Path(file)
        self.key = key

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        sparsifier: Sparsifier | None,
        history: History,
    ) -> None:
        """Writes the state before `step`.

        Raises:
            BlastError: if the disk is full; the state before stays.
        """
        values = {
            "key": self.key,
            "step": step,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "sparsifier": sparsifier.state_dict() if sparsifier else None,
            "curves": history.curves,
            "masks": history.masks,
            "seconds": history.seconds,
            "spent": history.spent,
        }
        aside = self.file.with_suffix(".tmp")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with aside.open("wb") as stream:
                torch.save(values, stream)
                stream.flush()
                os.fsync(stream.fileno())
            aside.replace(self.file)
        except (OSError, RuntimeError) as error:
            aside.unlink(missing_ok=True)
            raise BlastError(
                f"{self.file}: the training state cannot be written ({error}); free some space and run again: "
                "the run goes on from its last state."
            ) from error

    def restore(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, sparsifier: Sparsifier | None, history: History
    ) -> int:
        """Puts a saved state back, if there is one of this run.

        Returns:
            The step to go on with; 0 if there was none.

        Raises:
            BlastError: if the file is damaged.
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
        if key != self.key:
            return 0
        if sparsifier is not None:
            # First: it decides whether the model and the optimizer hold dense matrices or live blocks.
            sparsifier.load_state_dict(values["sparsifier"])
        model.load_state_dict(values["model"])
        optimizer.load_state_dict(values["optimizer"])
        for name in ("curves", "masks", "seconds", "spent"):
            setattr(history, name, values[name])
        return values["step"]

    def remove(self) -> None:
        """Deletes the state of a finished run."""
        self.file.unlink(missing_ok=True)
