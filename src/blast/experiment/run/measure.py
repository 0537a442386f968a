"""Our own metrics of a trained model, and the parts of the data that they are measured on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from blast import datasets
from blast.evaluation.item_scores import HELD_OUT, ItemScores
from blast.evaluation.loss import evaluate_language
from blast.evaluation.metric import of_part
from blast.evaluation.requests import SEPARATE_TEST
from blast.evaluation.top_k import evaluate_vision
from blast.experiment.plan.point import Point

BATCH = 32


def held_out_parts(point: Point, data: Any) -> tuple[Any, Any]:
    """The data whose held-out part gives the learning curves, and the data whose held-out part gives the metrics.

    They are the same, unless the point has a separate test: then no document or image is in both.
    """
    return data.held_out_halves() if point.evaluation.get(SEPARATE_TEST) else (data, data)


def measure(
    point: Point, model: nn.Module, validation: Any, test: Any, items: dict[str, ItemScores] | None = None
) -> list[dict[str, Any]]:
    """The metrics of a model on its test data, and if the point says so, on its validation and training data.

    Args:
        point: Says how to evaluate.
        model: As it is loaded from its checkpoint.
        validation: Data for the learning curves, see `held_out_parts`.
        test: Data for the metrics; the same object where there is no separate test.
        items: Filled with the scores of the single windows or images of the test data, under `HELD_OUT`.
    """
    limit = point.evaluation.get("limit")
    keep = None if items is None else functools.partial(items.__setitem__, HELD_OUT)
    metrics = _of_held_out(point, model, test, limit, keep)
    if validation is not test:
        metrics += of_part("validation", _of_held_out(point, model, validation, limit))
    if count := point.evaluation.get("train"):
        metrics += of_part("train", _of_held_out(point, model, test.training_part(count), count))
    return metrics


def _of_held_out(
    point: Point, model: nn.Module, data: Any, limit: int | None, keep: Callable[[ItemScores], None] | None = None
) -> list[dict[str, Any]]:
    """The metrics on the data that `data` holds out; `limit` is the largest number of windows of a text."""
    batch = point.evaluation.get("batch", BATCH)
    if datasets.get(point.dataset).MODALITY != "language":
        return evaluate_vision(model, data, batch=batch, keep=keep)
    return evaluate_language(model, data, length=point.training["length"], limit=limit, batch=batch, keep=keep)
