"""Whether a point of a grid is wrecked: pruned from published weights, and now worse than guessing or half lost.

`blast.evaluation.wrecked` has the definition.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blast import architectures
from blast.errors import BlastError
from blast.evaluation.wrecked import kept_margin, wrecked
from blast.experiment.plan.paths import GridFolder
from blast.experiment.records.record import read_record
from blast.experiment.run.initial_model import WITH_WEIGHTS

# The name, in the result of a record, of the loss of a unigram on the held-out text, nats a token.
UNIGRAM = "unigram_loss"


def wrecked_point(record: Mapping[str, Any], folder: GridFolder) -> str | None:
    """One sentence about a point that is wrecked, with what to change; None if it is not, or nothing tells.

    Args:
        record: Its record. Its loss, and that of the dense point that it is compared with, decide.
        folder: Folder of its grid.
    """
    if record["status"] != "ok" or record["point"].get("sparsify") is None:
        return None
    loss = _loss(record)
    parent = _parent(record, folder)
    starts = {each["point"].get("start") for each in (record, parent) if each is not None}
    if loss is None or not starts & set(WITH_WEIGHTS):
        return None
    vocabulary = vocabulary_of(record["point"]["architecture"])
    dense, chance, kept = None if parent is None else _loss(parent), record["result"].get(UNIGRAM), None
    if dense is not None and chance is not None:
        kept = kept_margin(loss, dense, chance)
    return wrecked(loss, vocabulary, kept)


def _parent(record: Mapping[str, Any], folder: GridFolder) -> dict[str, Any] | None:
    """The record of the dense point, if it ran well."""
    name = record["point"].get("parent")
    found = _record(folder, name) if name else None
    return found if found is not None and found["status"] == "ok" else None


def _record(folder: GridFolder, name: str) -> dict[str, Any] | None:
    try:
        return read_record(folder.record(name))
    except BlastError:
        return None


def _loss(record: Mapping[str, Any]) -> float | None:
    """Loss on the held-out text, nats a token."""
    for entry in record["result"].get("metrics", []):
        if (entry["metric"], entry["unit"]) == ("loss", "nats/token"):
            return entry["value"]
    return None


def vocabulary_of(architecture: str) -> int | None:
    """Tokens of the vocabulary of an architecture; None where that of the dataset decides."""
    return architectures.get(architecture).shape.vocab if architecture in architectures.names() else None
