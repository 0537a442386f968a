"""The model that a training point starts from: with fresh or with published weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blast import architectures
from blast.errors import BlastError

if TYPE_CHECKING:
    from torch import nn

    from blast.experiment.plan.point import Point

# Values of `start` that need published weights; with `published` the model is evaluated and not trained.
WITH_WEIGHTS = ("pretrained", "published")


def start_model(architecture: str, start: str, data: Any, length: int, ffn: int | None = None) -> nn.Module:
    """The model of a point before its first step, on the CPU.

    Args:
        architecture: Its name.
        start: `scratch`, or one of `WITH_WEIGHTS`.
        data: `LanguageData`, `SentenceData` or `VisionData`; gives the sizes of the model.
        length: Longest sequence in tokens, for fresh language models.
        ffn: Inner width of the MLPs of a fresh model; None for the architecture's own.

    Raises:
        BlastError: if published weights do not exist, cannot be fetched, or do not fit the data.
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
            # Sentences have their own length; a text is cut into windows of the training's length.
            sizes |= {"vocab_size": data.vocab_size, "context": getattr(data, "length", length)}
        model = architectures.build(architecture, ffn=ffn, **sizes)
    if hasattr(data, "pad_token"):
        model.config.pad_token_id = data.pad_token
    return model


def weights_of(point: Point) -> dict[str, Any]:
    """Source, digest, licence and size of published weights for the record; empty for a fresh model."""
    if point.start not in WITH_WEIGHTS:
        return {}
    facts = architectures.fetch(point.architecture)
    return {"weights": {key: facts[key] for key in ("source", "digest", "licence", "bytes")}}


def _check_fit(architecture: str, model: nn.Module, data: Any) -> None:
    """Refuses a dataset with more tokens, or longer sentences, than the published weights were trained for."""
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
