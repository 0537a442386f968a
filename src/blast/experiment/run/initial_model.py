"""The model that a training point begins with: fresh, or with published weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blast import architectures
from blast.errors import BlastError

if TYPE_CHECKING:
    from torch import nn

    from blast.experiment.plan.point import Point

# Starts that need the published weights; `published` models are evaluated as they are, and never trained.
WITH_WEIGHTS = ("pretrained", "published")


def start_model(architecture: str, start: str, data: Any, length: int) -> nn.Module:
    """The model of a point before its first step, on the CPU.

    Args:
        architecture: Its name.
        start: `scratch`, or one of `WITH_WEIGHTS`.
        data: `LanguageData`, `SentenceData`, `VisionData` or its like: what the model has to fit.
        length: Longest sequence in tokens, for fresh language models.

    Raises:
        BlastError: if there are no published weights, no source has them, or they do not fit the data.
    """
    sizes: dict[str, int] = {}
    if hasattr(data, "num_classes"):
        sizes["num_classes"] = data.num_classes
    if hasattr(data, "image_size"):
        sizes |= {"image_size": data.image_size, "channels": data.channels}
    if start in WITH_WEIGHTS:
        model = architectures.load(architecture, progress=print, **sizes)
        _check_fit(architecture, model, data)
    else:
        if hasattr(data, "vocab_size"):
            # Sentences have a length of their own; windows of a text are cut to that of the training.
            sizes |= {"vocab_size": data.vocab_size, "context": getattr(data, "length", length)}
        model = architectures.build(architecture, **sizes)
    if hasattr(data, "pad_token"):
        model.config.pad_token_id = data.pad_token
    return model


def weights_of(point: Point) -> dict[str, Any]:
    """What a record keeps of published weights: source, digest and licence; nothing for a fresh model."""
    if point.start not in WITH_WEIGHTS:
        return {}
    facts = architectures.fetch(point.architecture)
    return {"weights": {key: facts[key] for key in ("source", "digest", "licence", "bytes")}}


def _check_fit(architecture: str, model: nn.Module, data: Any) -> None:
    """Published weights know their own tokenizer's tokens alone."""
    known = getattr(getattr(model, "config", None), "vocab_size", None)
    if known is not None and data.vocab_size > known:
        raise BlastError(
            f"the published {architecture} knows {known} tokens and the dataset has {data.vocab_size}; "
            f"take the dataset in its tokens: '<dataset>@{architecture}'."
        )
    longest = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    length = getattr(data, "length", None)
    if longest is not None and length is not None and length > longest:
        raise BlastError(
            f"the published {architecture} reads {longest} tokens at once and the sentences have {length}; "
            "shorten 'length' of the dataset under 'data'."
        )
