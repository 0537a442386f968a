"""Top-k accuracy of a classifier."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from blast.errors import BlastError
from blast.evaluation.class_logits import class_logits
from blast.evaluation.metric import metric
from blast.evaluation.mode import evaluating
from blast.evaluation.statistics import binomial_stderr


@torch.inference_mode()
def top_k_hits(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    ks: tuple[int, ...] = (1, 5),
    batch_size: int = 100,
    device: torch.device | str | None = None,
) -> dict[int, int]:
    """Number of labels among the k classes with the largest output, for each k.

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
    hits = dict.fromkeys(ks, 0)
    with evaluating(model):
        for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            outputs = class_logits(model, x.to(device))  # [batch, classes]
            if not torch.isfinite(outputs).all():
                raise BlastError("the model gives outputs that are not finite; look at its training loss.")
            best = outputs.topk(min(max(ks), outputs.shape[1]), dim=1).indices  # [batch, k]
            right = best == y.to(device)[:, None]
            for k in ks:
                hits[k] += int(right[:, :k].any(1).sum())
    return hits


def evaluate_vision(
    model: nn.Module, data: Any, *, batch: int = 100, device: torch.device | str | None = None
) -> list[dict[str, Any]]:
    """`top1` and `top5` on the test images (or sentences) of a dataset, with binomial standard errors.

    Args:
        model: A classifier.
        data: A `VisionData` or similar (`test_batches`, `num_classes`); only one batch is in memory at a time.
        batch: Images per batch.
        device: Device of the model; by default that of its first parameter.
    """
    hits: dict[int, int] = {}
    n = 0
    for images, labels in data.test_batches(batch):
        for k, count in top_k_hits(model, images, labels, batch_size=batch, device=device).items():
            hits[k] = hits.get(k, 0) + count
        n += len(labels)
    if not n:
        raise BlastError("there is no image to evaluate on; give at least one.")
    return [
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
