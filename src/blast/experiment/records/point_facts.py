"""What the rows of a training point say about its settings, so that views can tell points apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from blast import datasets
from blast.files import json_digest
from blast.settings import plain
from blast.sparsity.config import SparsifyConfig
from blast.training.distillation import Distillation
from blast.training.settings import TrainingSettings

# Not choices of a recipe: what the point is, how long it trains, and what changes results by rounding only.
NO_CHOICE = frozenset({
    "sparsity", "block", "steps", "seed", "execution", "break_even", "batch", "length", "learning_rate",
    "evaluate_every", "evaluate_limit", "spike", "compile", "cuda_graphs", "deterministic", "checkpoint_seconds",
    "processes", "parallel",
})  # fmt: skip

# How the held-out data are scored, of the settings of an evaluation.
COMPARED_BY = ("batch", "limit", "separate_test")


def execution_facts(point: Mapping[str, Any]) -> dict[str, str]:
    """The `execution` of a pruned training point, and a digest of all its other settings.

    Points with equal `same_but_execution` differ only in `execution`, so their results agree except for rounding.

    Args:
        point: As `Point.to_dict` gives it.

    Returns:
        `execution` and `same_but_execution`; nothing for other points.
    """
    sparsify = point.get("sparsify") or {}
    if "execution" not in sparsify:
        return {}
    rest = {key: value for key, value in point.items() if key not in ("id", "grid", "parent", "sparsify")}
    rest["sparsify"] = {key: value for key, value in sparsify.items() if key != "execution"}
    return {"execution": sparsify["execution"], "same_but_execution": _short_digest(rest)}


def training_facts(point: Mapping[str, Any]) -> dict[str, Any]:
    """What a training point started from, learned from and was trained on, and the choices of its recipe.

    Args:
        point: As `Point.to_dict` gives it.

    Returns:
        Nothing for a benchmark; else, each where it applies:

        - `start`: as the point has it.
        - `trained`: tokens, or images, that the training saw; 0 where nothing was trained. For a pruned parent, those
          of the parent.
        - `teacher`: `dense` or the published model it learned from. `ffn`: the width of a `small_dense` point.
        - `same_but_rate`: a digest of all settings but the seed, the learning rate, and what is evaluated besides the
          held-out data. Points with the same one are trials of a learning rate, or repetitions.
        - `choices`: the settings of pruning, training and teacher that differ from their defaults.
    """
    training = point.get("training")
    if point["stage"] != "train" or training is None:
        return {}
    sparsify, distillation = point.get("sparsify") or {}, point.get("distillation") or {}
    left_out = ("id", "grid", "parent", "teacher", "seed", "threads", "training", "sparsify")
    rest = {key: value for key, value in point.items() if key not in left_out}
    # What else is evaluated changes neither the model nor the held-out score that trials are compared by.
    rest["evaluation"] = {key: value for key, value in point.get("evaluation", {}).items() if key in COMPARED_BY}
    rest["training"] = {key: value for key, value in training.items() if key != "learning_rate"}
    rest["sparsify"] = {key: value for key, value in sparsify.items() if key != "seed"}
    facts = {
        "start": point["start"],
        "trained": 0 if point["start"] == "published" else _trained(point["dataset"], training),
        "teacher": distillation.get("teacher"),
        "ffn": point.get("ffn"),
        "same_but_rate": _short_digest(rest),
        "choices": _changed(TrainingSettings, training) | _changed(SparsifyConfig, sparsify),
    }
    changed = _changed(Distillation, distillation)
    facts["choices"] |= {f"distillation.{name}": value for name, value in changed.items() if name != "teacher"}
    if facts["teacher"]:
        facts["choices"]["teacher"] = facts["teacher"]
    return {key: value for key, value in facts.items() if value is not None}


def _trained(dataset: str | None, training: Mapping[str, Any]) -> int | None:
    """Tokens or images; None where the dataset is not known here, or the record does not say how long it trained."""
    if not {"steps", "batch"} <= training.keys() or datasets.base_name(dataset or "") not in datasets.names():
        return None
    language = datasets.get(dataset).MODALITY == "language"
    length = training.get("length", TrainingSettings.length) if language else 1
    return int(training["steps"] * training["batch"] * length)


def _changed(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that differ from their defaults."""
    defaults = {
        field.name: plain(field.default) for field in fields(kind) if field.name not in NO_CHOICE
        and field.default is not MISSING
    }  # fmt: skip
    return {name: values[name] for name in sorted(defaults) if name in values and values[name] != defaults[name]}


def _short_digest(values: Any) -> str:
    return json_digest(values).removeprefix("sha256:")[:12]
