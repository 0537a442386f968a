"""Measures how long a training step takes on this machine, before the training."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

# Clipping, optimizer, masks and progress, as a factor of forward and backward pass.
REST_OF_STEP = 1.1
# bfloat16 is taken where it is so much faster: it is less exact.
CLEARLY_FASTER = 1.2

# The loss of a batch `[n, length + 1]` with products in a dtype.
LossIn = Callable[["Tensor", str], "Tensor"]


def faster_dtype(run: Callable[[str], object], device: torch.device, rounds: int = 4) -> str:
    """`bfloat16` if it is clearly faster than `float32` here in each round but the first, which is slower.

    The two run in turns. On a CPU the time of the processor counts, not what other programs take of it: the choice
    decides the numbers of the training, so a busy moment must not make another one.

    Args:
        run: Does the work with products in a dtype.
        device: Where it runs.
        rounds: How often each runs.
    """
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    won = []
    for _ in range(rounds):
        seconds = {}
        for dtype in ("bfloat16", "float32"):
            start = clock()
            run(dtype)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds[dtype] = clock() - start
        won.append(seconds["bfloat16"] * CLEARLY_FASTER < seconds["float32"])
    return "bfloat16" if all(won[1:]) else "float32"


def step_seconds(model: nn.Module, loss_in: LossIn, tokens: Tensor, dtype: str, rounds: int = 3) -> float:
    """Seconds of a forward and a backward pass: the fastest round after the first one.

    Args:
        model: Gets gradients, which are dropped.
        loss_in: Loss of a batch.
        tokens: A batch as in the training.
        dtype: Of the products.
        rounds: Passes, the first one included, which is slower.
    """
    took = []
    for _ in range(rounds):
        start = time.perf_counter()
        loss_in(tokens, dtype).backward()
        if tokens.is_cuda:
            torch.cuda.synchronize(tokens.device)
        took.append(time.perf_counter() - start)
        model.zero_grad(set_to_none=True)
    return min(took[1:])


def as_time(seconds: float) -> str:
    """Seconds as text, for instance `2 min 5 s`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
