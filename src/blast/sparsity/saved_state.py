"""The saved state of a `Sparsifier`: its format, and the check that it fits a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from blast.distributed import world_size
from blast.errors import BlastError, check_argument
from blast.sparsity.config import SparsifyConfig

STATE_FORMAT = 2
# What every saved state has; states of before have no `postponed`.
STATE_KEYS = ("config", "step_count", "finished", "execution", "world_size", "sparsity_target", "masks")
# Beside them, of a config with warm regrown state: the optimizer steps of each block since it grew.
REGROWN = "regrown_steps"


def check_saved_state(state: Mapping[str, Any], config: SparsifyConfig, masks: Mapping[str, Tensor]) -> None:
    """Checks that a saved state fits this run.

    Args:
        state: A result of `Sparsifier.state_dict`.
        config: The config of this run.
        masks: The masks of this run, by name.

    Raises:
        BlastError: if it is no such state, or the format, the config, the number of processes or the matrices differ.
    """
    check_argument("the saved state of the sparsifier", state, Mapping, "a result of sparsifier.state_dict()")
    if state.get("format") != STATE_FORMAT:
        raise BlastError(
            f"the saved sparsifier has format {state.get('format')}, not {STATE_FORMAT}; start the training again."
        )
    wanted = (*STATE_KEYS, REGROWN) if config.regrown_state == "warm" else STATE_KEYS
    missing = [key for key in wanted if key not in state]
    if missing or not isinstance(state["masks"], Mapping) or not isinstance(state["config"], Mapping):
        what = f"lacks '{missing[0]}'" if missing else "is damaged"
        raise BlastError(f"the saved state of the sparsifier {what}; give a result of sparsifier.state_dict().")
    ours, theirs = config.to_dict(), state["config"]
    keys = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    if keys:
        differ = ", ".join(f"{key} was {theirs.get(key)!r} and is {ours.get(key)!r}" for key in keys)
        raise BlastError(f"the saved sparsifier has another config ({differ}); resume with the saved one.")
    if state["world_size"] != world_size():
        raise BlastError(
            f"the saved sparsifier is from {state['world_size']} processes and this run has {world_size()}; "
            "resume with the same number, because each process has its share of the data."
        )
    shapes = {name: mask.shape for name, mask in masks.items()}
    if shapes != {name: mask.shape for name, mask in state["masks"].items()}:
        raise BlastError("the saved masks belong to other matrices than this model has; resume with the saved model.")
