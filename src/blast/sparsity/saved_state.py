"""Whether a saved state of a `Sparsifier` is one that this run can go on from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from blast.errors import BlastError
from blast.sparsity.config import SparsifyConfig
from blast.sparsity.ranks import world_size

STATE_FORMAT = 2


def check_state(state: Mapping[str, Any], config: SparsifyConfig, masks: Mapping[str, Tensor]) -> None:
    """Raises unless a state is of this format, config, number of processes and of these matrices.

    Args:
        state: What `Sparsifier.state_dict` gave.
        config: Of the run that would go on.
        masks: Its masks, by name.
    """
    if state.get("format") != STATE_FORMAT:
        raise BlastError(f"the saved sparsifier has format {state.get('format')}, not {STATE_FORMAT}; start afresh.")
    ours, theirs = config.to_dict(), state["config"]
    keys = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    if keys:
        differ = ", ".join(f"{key} was {theirs.get(key)!r} and is {ours.get(key)!r}" for key in keys)
        raise BlastError(f"the saved sparsifier has another config ({differ}); resume with the saved one.")
    if state["world_size"] != world_size():
        raise BlastError(
            f"the saved sparsifier is that of {state['world_size']} processes and this run has {world_size()}; "
            "resume with as many, since each has its share of the data."
        )
    shapes = {name: mask.shape for name, mask in masks.items()}
    if shapes != {name: mask.shape for name, mask in state["masks"].items()}:
        raise BlastError("the saved masks are of other matrices than this model's; resume with the saved model.")
