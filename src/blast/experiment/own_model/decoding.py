"""How many tokens a second a model decodes, one sequence at a time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from blast.evaluation.scoring import max_length_of

if TYPE_CHECKING:
    from torch import Tensor, nn

ROUNDS = 3
TOKENS = 32
PROMPT = 16


@torch.inference_mode()
def decode_rates(models: Mapping[str, nn.Module], prompt: Tensor) -> dict[str, float]:
    """Tokens a second of each model: the median of some rounds, in which the models take turns.

    Args:
        models: Causal language models of transformers by name, in eval mode, on one device.
        prompt: Token ids `[1, length]`; it is shortened where a model could not read it with the new tokens.
    """
    longest = min(max_length_of(model) for model in models.values())
    new = min(TOKENS, max(1, longest // 2))
    prompt = prompt[:, : max(1, min(PROMPT, longest - new))]
    for model in models.values():
        _decode(model, prompt, 2)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(ROUNDS):
        for name, model in models.items():
            start = time.perf_counter()
            _decode(model, prompt, new)
            seconds[name].append(time.perf_counter() - start)
    return {name: new / statistics.median(took) for name, took in seconds.items()}


def _decode(model: Any, prompt: Tensor, new: int) -> None:
    model.generate(
        prompt.to(next(model.parameters()).device),
        attention_mask=torch.ones_like(prompt).to(next(model.parameters()).device),
        max_new_tokens=new,
        min_new_tokens=new,
        do_sample=False,
        pad_token_id=0,
    )
    if prompt.is_cuda:
        torch.cuda.synchronize()
