"""Moments of Adam for blocks that grow: as if Adam had started when the block grew.

SMET (arXiv 2606.00888) found that Adam moves regrown weights too far. Their moments start at zero, but the optimizer
corrects the bias of the moments by its own step, at which no bias is left. With betas of 0.9 and 0.999 the first update
is 3.2 times that of a fresh start. SMET counts the steps of each weight and corrects by that count, and lets the
learning rate of the weight rise linearly over some steps (ten in its published scripts).

Our reading of it uses torch's optimizers as they are. Before an optimizer step it writes moments such that the
optimizer's own step gives the moments, and so the update, of a fresh start. The moment `m` of a fresh start at its step
`n` is `m(n) = b m(n-1) + (1 - b) g`; corrected for its bias it is `m(n) / (1 - b^n)`. At its own step `T` the optimizer
divides by `1 - b^T`, so it must hold `m(n) (1 - b^T) / (1 - b^n)`. `moment_factors` says how to get there. The first
moment also carries the factor of the learning rate. After the last of these steps the moments have no bias, and the
optimizer goes on alone. SMET counts to the end. A `regrown_warmup` as long as the run does so too, but then the rate
also rises that long.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from blast.errors import BlastError

# Smallest divisor: at the first step of the optimizer there is no moment yet, and the factor is of no use.
TINY = 1e-30
# Options with which the update of Adam is another.
REFUSED_OPTIONS = ("amsgrad", "maximize", "differentiable")


def check_adam(optimizer: torch.optim.Optimizer) -> None:
    """Checks that an optimizer is torch's Adam or AdamW.

    Raises:
        BlastError: if it is another, or has options with which its update is another.
    """
    name, remedy = type(optimizer).__name__, "use torch.optim.AdamW without it, or regrown_state='zero'"
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW):
        raise BlastError(
            f"regrown_state 'warm' restarts the moments of Adam, but {name} trains the matrices; "
            "use torch.optim.AdamW or Adam, or regrown_state='zero'."
        )
    for group in optimizer.param_groups:
        option = next((option for option in REFUSED_OPTIONS if group.get(option)), None)
        if option is not None:
            raise BlastError(f"regrown_state 'warm' does not know {name} with {option}; {remedy}.")
        if not all(group["betas"]):
            raise BlastError(f"regrown_state 'warm' needs betas of {name} above 0; {remedy}.")


def moment_factors(beta: float, own: Tensor, step: Tensor, warmup: int | None = None) -> tuple[Tensor, Tensor]:
    """How to change a moment before an optimizer step, so that the step gives that of a fresh start.

    The moment becomes `keep * moment + add * gradient`; for the second moment the gradient is squared.

    Args:
        beta: Decay of the moment, above 0.
        own: The step of the block that this will be, from 1, float64.
        step: The step of the optimizer that this will be, of the same shape.
        warmup: For the first moment: steps over which the update rises linearly, by a factor of `own / warmup`. The
            first moment carries that factor.

    Returns:
        `keep` and `add`, float64. At `own == step`, without `warmup`, they change nothing.

    Example:
        >>> keep, add = moment_factors(0.9, own=torch.ones(1).double(), step=torch.full((1,), 1000.0).double())
        >>> keep.item(), round(add.item(), 3)  # the first gradient is the moment
        (0.0, 1.0)
    """
    share = (1 - beta**step) / (1 - beta**own)
    keep = (1 - beta ** (own - 1)) / (1 - beta ** (step - 1)).clamp_min(TINY) * share
    if warmup is not None:
        keep = keep * own / (own - 1).clamp_min(1)
        share = share * own / warmup
    return keep, (share - 1) * ((1 - beta) / beta)


def gradient_of(parameter: Tensor, group: dict[str, Any]) -> Tensor | None:
    """The gradient that Adam adds to its moments: that of a parameter, with weight decay if that is a part of it."""
    gradient, decay = parameter.grad, group["weight_decay"]
    if gradient is None or not decay or group.get("decoupled_weight_decay", False):
        return gradient
    return gradient.add(parameter.detach(), alpha=decay)
