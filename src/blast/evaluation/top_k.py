"""Top-k accuracy and loss of a classifier."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blast.errors import BlastError
from blast.evaluation.class_logits import class_logits
from blast.evaluation.metric import metric
from blast.evaluation.mode import evaluating
from blast.evaluation.statistics import binomial_stderr, mean_and_stderr


@torch.inference_mode()
def top_k_hits_and_losses(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    ks: tuple[int, ...] = (1, 5),
    batch_size: int = 100,
    device: torch.device | str | None = None,
) -> tuple[dict[int, int], list[float]]:
    """Number of labels among the k classes with the largest output, for each k, and the loss of each image in nats.

    Args:
        model: `model(images [batch, channels, height, width])` gives `[batch, classes]`.
        images: Normalised float images `[n, channels, height, width]`.
        labels: Class numbers `[n]`.
        ks: Values of k; one above the number of classes counts as all classes.
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
    hits, losses = dict.fromkeys(ks, 0), []
    with evaluating(model):
        for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            outputs = class_logits(model, x.to(device))  # [batch, classes]
            if not torch.isfinite(outputs).all():
                raise BlastError("the model gives outputs that are not finite; look at its training loss.")
            losses += F.cross_entropy(outputs, y.to(device), reduction="none").double().tolist()
            best = outputs.topk(min(max(ks), outputs.shape[1]), dim=1).indices  # [batch, k]
            right = best == y.to(device)[:, None]
            for k in ks:
                hits[k] += int(right[:, :k].any(1).sum())
    return hits, losses


def evaluate_vision(
    model: nn.Module, data: Any, *, batch: int = 100, device: torch.device | str | None = None
) -> list[dict[str, Any]]:
    """`top1`, `top5` and `loss` (nats) on the test images (or sentences) of a dataset, with their standard errors.

    The error of a share is the binomial one, that of the loss is over images.

    Args:
        model: A classifier.
        data: A `VisionData` or similar (`test_batches`, `num_classes`); only one batch is in memory at a time.
        batch: Images per batch.
        device: Device of the model; by default that of its first parameter.
    """
    hits: dict[int, int] = {}
    losses: list[float] = []
    for images, labels in data.test_batches(batch):
        found, nats = top_k_hits_and_losses(model, images, labels, batch_size=batch, device=device)
        hits = {k: hits.get(k, 0) + count for k, count in found.items()}
        losses += nats
    n = len(losses)
    if not n:
        raise BlastError("there is no image to evaluate on; give at least one.")
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
        for k, count in hits.items()
    ]
    loss, loss_stderr = mean_and_stderr(losses)
    return [
        *shares,
        metric("loss", loss, unit="nats", better="lower", n=n, stderr=loss_stderr, setting={"batch": batch}),
    ]
