"""Saves and loads a sparsifier together with what `accelerator.save_state` saves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from blast.errors import BlastError
from blast.files import replacing
from blast.model.module_replacement import unwrapped
from blast.sparsity.sparsifier import Sparsifier

if TYPE_CHECKING:
    from accelerate import Accelerator

FILE = "sparsifier.bin"


def register_sparsifier(accelerator: Accelerator, sparsifier: Sparsifier) -> None:
    """Adds a sparsifier to `accelerator.save_state` and `accelerator.load_state`.

    It is loaded before the model and the optimizer, as its state says whether they hold dense matrices or live blocks.
    In the sparse state its file, `sparsifier.bin`, holds the weights of the model too.
    `accelerator.register_for_checkpointing` would load it after them, which suits masked-dense training only.

    Args:
        accelerator: The accelerator that prepared the model and the optimizer.
        sparsifier: Made after `accelerator.prepare`.

    Raises:
        BlastError: from `load_state`, if the folder holds no sparsifier, or that of another run.

    Example:
        >>> accelerator = accelerate.Accelerator()
        >>> model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
        >>> sparsifier = blast.Sparsifier(model, optimizer, config)
        >>> register_sparsifier(accelerator, sparsifier)
    """

    def save(models: list[nn.Module], weights: list[dict[str, Any]], folder: str) -> None:
        state: dict[str, Any] = {"sparsifier": sparsifier.state_dict()}
        if sparsifier.execution == "sparse":
            # safetensors takes the indices of several layers, which share memory, for one tensor.
            state["model"] = weights.pop(place(models))
        if accelerator.is_main_process:
            with replacing(Path(folder) / FILE, alone=True) as temporary, temporary.open("wb") as stream:
                torch.save(state, stream)

    def load(models: list[nn.Module], folder: str) -> None:
        file = Path(folder) / FILE
        if not file.is_file():
            raise BlastError(
                f"{folder} holds no {FILE}, so it was saved without a sparsifier; load another folder, or start anew."
            )
        state = torch.load(file, map_location="cpu", weights_only=True)
        sparsifier.load_state_dict(state["sparsifier"])
        if "model" in state:
            models.pop(place(models)).load_state_dict(state["model"])

    def place(models: list[nn.Module]) -> int:
        return next(place for place, model in enumerate(models) if unwrapped(model) is sparsifier.model)

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)
