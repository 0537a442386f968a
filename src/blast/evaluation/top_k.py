"""Top-k accuracy and loss of a classifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blast.errors import BlastError
from blast.evaluation.class_logits import class_logits
from blast.evaluation.item_scores import ItemScores
from blast.evaluation.metric import metric
from blast.evaluation.mode import evaluating
from blast.evaluation.statistics import binomial_stderr, mean_and_stderr
from blast.files import json_digest

KS = (1, 5)


@torch.inference_mode()
def ranks_and_losses(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    largest: int = max(KS),
    batch_size: int = 100,
    device: torch.device | str | None = None,
) -> tuple[list[int], list[float]]:
    """The rank of each label among the classes, largest output first and counted from 0, and the loss in nats.

    Args:
        model: `model(images [batch, channels, height, width])` gives `[batch, classes]`.
        images: Normalised float images `[n, channels, height, width]`.
        labels: Class numbers `[n]`.
        largest: Ranks from this one on are given as this one.
        batch_size: Images per batch, in their order.
        device: Device of the model; by default that of its first parameter.

    Raises:
        BlastError: if there is no image, the numbers of images and labels differ, or an output is not finite.
    """
    if images.shape[0] == 0 or images.shape[0] != labels.shape[0]:
        raise BlastError(
            f"{images.shape[0]} images and {labels.shape[0]} labels; give at least one image, and one label for each."
        )
    device = device or next(model.parameters()).device
    ranks, losses = [], []
    with evaluating(model):
        for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            outputs = class_logits(model, x.to(device))  # [batch, classes]
            if not torch.isfinite(outputs).all():
                raise BlastError("the model gives outputs that are not finite; look at its training loss.")
            losses += F.cross_entropy(outputs, y.to(device), reduction="none").double().tolist()
            best = outputs.topk(min(largest, outputs.shape[1]), dim=1).indices  # [batch, largest]
            right = best == y.to(device)[:, None]
            ranks += torch.where(right.any(1), right.int().argmax(1), largest).tolist()
    return ranks, losses


def evaluate_vision(
    model: nn.Module,
    data: Any,
    *,
    batch: int = 100,
    device: torch.device | str | None = None,
    keep: Callable[[ItemScores], None] | None = None,
) -> list[dict[str, Any]]:
    """`top1`, `top5` and `loss` (nats) on the test images (or sentences) of a dataset, with their standard errors.

    The error of a share is the binomial one, that of the loss is over images.

    Args:
        model: A classifier.
        data: A `VisionData` or similar (`test_batches`, `num_classes`); only one batch is in memory at a time.
        batch: Images per batch.
        device: Device of the model; by default that of its first parameter.
        keep: Is called with the scores of the single images, for paired comparisons.
    """
    ranks: list[int] = []
    losses: list[float] = []
    classes: list[int] = []
    for images, labels in data.test_batches(batch):
        found, nats = ranks_and_losses(model, images, labels, batch_size=batch, device=device)
        ranks += found
        losses += nats
        classes += labels.tolist()
    n = len(losses)
    if not n:
        raise BlastError("there is no image to evaluate on; give at least one.")
    if keep is not None:
        keep(
            ItemScores(
                nats=np.array(losses),
                bytes=np.zeros(n, dtype=np.int64),
                correct={"top1": np.array(ranks) == 0},
                chance={"top1": 1 / data.num_classes},
                tokens=0,
                digest=json_digest(classes),
            )
        )
    shares = [
        metric(
            f"top{k}",
            count / n,
            unit="fraction",
            better="higher",
            n=n,
            stderr=binomial_stderr(count / n, n),
            setting={"chance": min(1.0, k / data.num_classes), "batch": batch},
        )
        for k, count in ((k, sum(rank < k for rank in ranks)) for k in KS)
    ]
    loss, loss_stderr = mean_and_stderr(losses)
    return [
        *shares,
        metric("loss", loss, unit="nats", better="lower", n=n, stderr=loss_stderr, setting={"batch": batch}),
    ]
