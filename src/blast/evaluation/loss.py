"""Loss of a language model on chunks of text: nats a token, perplexity, and bits a byte."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blast.errors import BlastError
from blast.evaluation.item_scores import ItemScores
from blast.evaluation.metric import metric
from blast.evaluation.mode import evaluating
from blast.evaluation.statistics import mean_and_stderr, ratio_and_stderr
from blast.files import json_digest

# The perplexity of a larger loss is no floating-point number; it is left out.
LARGEST_LOSS = 700.0


@torch.inference_mode()
def chunk_losses(
    model: nn.Module, chunks: Tensor, batch_size: int = 16, device: torch.device | str | None = None
) -> list[float]:
    """Cross-entropy of the next token in nats, summed over each chunk.

    Args:
        model: `model(input_ids).logits` gives `[batch, length, vocabulary]`.
        chunks: Token ids `[n, length + 1]`.
        batch_size: Chunks a batch, in their order.
        device: Device of the model; by default that of its first parameter.

    Raises:
        BlastError: if there is no chunk, or a loss is not finite.
    """
    if chunks.ndim != 2 or chunks.shape[0] == 0 or chunks.shape[1] < 2:
        raise BlastError(
            f"the validation chunks have shape {tuple(chunks.shape)}; give at least one chunk of two tokens."
        )
    device = device or next(model.parameters()).device
    sums: list[float] = []
    with evaluating(model):
        for batch in chunks.split(batch_size):
            batch = batch.to(device)
            logits = model(batch[:, :-1]).logits.float()  # [batch, length, vocabulary]
            losses = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none")
            sums += losses.view(batch.shape[0], -1).double().sum(1).tolist()
    bad = sum(not math.isfinite(nats) for nats in sums)
    if bad:
        raise BlastError(f"the validation loss is not finite on {bad} of {len(sums)} chunks; lower the learning rate.")
    return sums


def evaluate_language(
    model: nn.Module,
    data: Any,
    *,
    length: int,
    limit: int | None = None,
    batch: int = 16,
    device: torch.device | str | None = None,
    keep: Callable[[ItemScores], None] | None = None,
) -> list[dict[str, Any]]:
    """`loss` (nats a token), `perplexity` and `bits_per_byte` on the held-out chunks of a language dataset.

    Loss and bits are sums over all chunks, one divided by the tokens, the other by ln 2 and the bytes that these very
    tokens stand for. So bits per byte compare models with different tokenizers. Perplexity is exp(loss), and its
    standard error is that of the loss times the perplexity (delta method). Standard errors are over chunks, because
    tokens within a chunk are not independent.

    Args:
        model: A causal language model.
        data: A `LanguageData` (`validation_chunks`, `bytes_of`).
        length: Predicted tokens per chunk.
        limit: Largest number of chunks; None for all.
        batch: Chunks a batch.
        device: Device of the model; by default that of its first parameter.
        keep: Is called with the losses of the single chunks, for paired comparisons.
    """
    chunks = data.validation_chunks(length, limit)
    nats = chunk_losses(model, chunks, batch, device)
    sizes = [data.bytes_of(chunk[1:]) for chunk in chunks]
    if keep is not None:
        keep(ItemScores.of_texts(nats, sizes, len(nats) * length, json_digest(chunks.tolist())))
    loss, loss_stderr = mean_and_stderr([one / length for one in nats])
    bits, bits_stderr = ratio_and_stderr([one / math.log(2.0) for one in nats], sizes)
    setting = {"window": length, "tokens": len(nats) * length, "bytes": sum(sizes), "batch": batch}
    shared = {"better": "lower", "n": len(nats), "setting": setting}
    metrics = [
        metric("loss", loss, unit="nats/token", stderr=loss_stderr, **shared),
        metric("bits_per_byte", bits, unit="bits/byte", stderr=bits_stderr, **shared),
    ]
    if loss < LARGEST_LOSS:
        perplexity = math.exp(loss)
        error = None if loss_stderr is None else perplexity * loss_stderr
        metrics.append(metric("perplexity", perplexity, unit="perplexity/token", stderr=error, **shared))
    return metrics
