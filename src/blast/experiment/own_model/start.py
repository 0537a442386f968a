"""Prunes the model once before the training, so that all steps of a short run train the blocks that stay.

The score of a block is the error that its removal costs; the blocks that stay compensate (`one_shot_obs`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from blast.sparsity.config import SparsifyConfig
from blast.sparsity.one_shot_calibrated import prune_once_
from blast.training.language_loss import token_logits

if TYPE_CHECKING:
    from blast.experiment.own_model.workplace import Workplace

# Tokens of the calibration.
CALIBRATION = 4096
AT_ONCE = 1024
# Numbers of its batches: other places of the training text than those of the steps.
FIRST_BATCH = 1 << 40


def can_start_from_one_shot(work: Workplace, dense_layers: Sequence[int]) -> bool:
    """Whether the inputs of all matrices can be observed; those of experts cannot."""
    return all(target.expert is None for target in work.matrices_without(dense_layers))


def start_from_one_shot(work: Workplace, dense_layers: Sequence[int], dtype: str) -> None:
    """Prunes the model once, in place; the weights of blocks that stay compensate those that go.

    Args:
        work: The model and the text.
        dense_layers: Layers that stay dense.
        dtype: Of the products.
    """
    start, options = time.monotonic(), work.options
    names = tuple(target.name for target in work.matrices_without(dense_layers))
    config = SparsifyConfig.from_method(
        "one_shot_obs", sparsity=options.sparsity, block=work.block, steps=1, targets=names
    )
    sequences = max(1, AT_ONCE // options.length)
    count = max(1, CALIBRATION // (sequences * options.length))
    batches = [work.batch(FIRST_BATCH + number, sequences)[:, :-1] for number in range(count)]

    def forward(model: Any, tokens: Tensor) -> Tensor:
        with torch.autocast(work.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            return token_logits(model, tokens)

    work.say(f"pruning once, with {count * sequences * options.length:,} tokens as calibration")
    prune_once_(work.model, config, batches, forward)
    work.started = True
    work.say(f"pruned once after {time.monotonic() - start:.0f} s")
