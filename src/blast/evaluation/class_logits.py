"""The logits of a classifier of images or sentences."""

from __future__ import annotations

from torch import Tensor, nn


def class_logits(model: nn.Module, inputs: Tensor) -> Tensor:
    """Logits `[batch, classes]`, float32.

    Args:
        model: A classifier; for sentences one of transformers, whose config names the padding token.
        inputs: Images `[batch, channels, height, width]`, or token ids `[batch, length]` padded on the right.
    """
    if inputs.is_floating_point():
        return model(inputs).float()
    return model(input_ids=inputs, attention_mask=inputs != model.config.pad_token_id).logits.float()
