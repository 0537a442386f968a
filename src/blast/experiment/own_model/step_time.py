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
# Seconds between two lines that say how far a measurement is.
PROGRESS_S = 5.0
# Shape of the product that tells whether a processor has bfloat16 instructions.
PRODUCT = (256, 512)
# bfloat16 is taken where it is so much faster: it is less exact.
CLEARLY_FASTER = 1.2

# The loss of a batch `[n, length + 1]` with products in a dtype.
LossIn = Callable[["Tensor", str], "Tensor"]


def faster_dtype(run: Callable[[str], object], device: torch.device, rounds: int = 4) -> str:
    """`bfloat16` if it is clearly faster than `float32` here in each round but the first, which is slower.

    The two run in turns, and no more rounds than decide. A processor without bfloat16 instructions can take thirty
    times as long with it, a minute for one sequence: there a single product decides. On a CPU the time of the
    processor counts, not what other programs take of it: the choice decides the numbers of the training, so a busy
    moment must not make another one.

    Args:
        run: Does the work with products in a dtype.
        device: Where it runs.
        rounds: How often each runs at most.
    """
    if device.type == "cpu" and not _is_faster(_product, device, rounds, 1.0):
        return "float32"
    return "bfloat16" if _is_faster(run, device, rounds, CLEARLY_FASTER) else "float32"


def _is_faster(run: Callable[[str], object], device: torch.device, rounds: int, wanted: float) -> bool:
    """Whether bfloat16 is `wanted` times as fast as float32 in each round but the first."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    for number in range(rounds):
        seconds = {}
        for dtype in ("bfloat16", "float32"):
            start = clock()
            run(dtype)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds[dtype] = clock() - start
        if number and seconds["bfloat16"] * wanted >= seconds["float32"]:
            return False
    return True


def _product(dtype: str) -> torch.Tensor | None:
    """A product of usual size on the CPU, forward and backward; returns the gradient."""
    rows = torch.ones(PRODUCT, dtype=getattr(torch, dtype), requires_grad=True)
    (rows @ rows.T).sum().backward()
    return rows.grad


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
