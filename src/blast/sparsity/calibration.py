"""Second moments of the inputs of matrices, over some batches: what activation-aware one-shot pruning needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from blast.errors import BlastError
from blast.model.target import Target

Forward = Callable[[nn.Module, Any], Any]


@torch.no_grad()
def input_moments(
    model: nn.Module, targets: Sequence[Target], batches: Iterable[Any], forward: Forward, full: bool = False
) -> dict[str, Tensor]:
    """The mean of `x²` (or of `x xᵀ`) over all tokens that reach each matrix.

    Args:
        model: Any model; it is run in eval mode and not changed.
        targets: The matrices.
        batches: Inputs of `forward`.
        forward: Runs the model on a batch.
        full: Whether to return the whole matrix `[in, in]` rather than its diagonal `[in]`.

    Returns:
        For each name of a target, float32 on its device.

    Raises:
        BlastError: if a matrix got no input, is the slice of an expert, or an input is not finite.
    """
    if experts := [target.name for target in targets if target.expert is not None]:
        raise BlastError(
            f"the inputs of '{experts[0]}' cannot be observed, because it is an expert in a larger parameter; "
            "prune without a calibration ('magnitude'), or leave it out of the targets."
        )
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def hook_of(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            x = inputs[0].detach().flatten(0, -2).float()
            with torch.autocast(x.device.type, enabled=False):  # it would round the products to bfloat16
                moment = x.t() @ x if full else x.square().sum(0)
            sums[name] = moment if name not in sums else sums[name] + moment
            counts[name] = counts.get(name, 0) + len(x)

        return hook

    handles = [target.module.register_forward_pre_hook(hook_of(target.name)) for target in targets]
    training = model.training
    model.eval()
    try:
        for batch in batches:
            forward(model, batch)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    for target in targets:
        if not counts.get(target.name):
            raise BlastError(
                f"no token of the calibration reached '{target.name}'; "
                "give more batches, or leave it out of the targets."
            )
        if not bool(sums[target.name].isfinite().all()):
            raise BlastError(f"an input of '{target.name}' is NaN or infinite in the calibration; check the model.")
    return {name: moment / counts[name] for name, moment in sums.items()}
