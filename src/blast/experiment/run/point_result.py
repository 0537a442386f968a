"""What is measured on the saved model of a point: the `result` part of its record."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from blast.checkpoint.manifest import MANIFEST, weights_file
from blast.evaluation.item_scores import ItemScores, write_item_scores
from blast.evaluation.metric import metric
from blast.evaluation.requests import read_requests
from blast.evaluation.scoring import read_tokens, score_requests
from blast.evaluation.wrecked import unigram_loss
from blast.experiment.plan.paths import ITEMS
from blast.experiment.run.initial_model import weights_of
from blast.experiment.run.measure import BATCH, measure
from blast.experiment.run.point_run import PointRun
from blast.files import file_digest, replacing
from blast.model.memory import model_bytes
from blast.training.history import History

Result = dict[str, Any]
# Tokens of the text that the unigram is counted on.
COUNTED = 5_000_000


def _scored(run: PointRun, model: nn.Module) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """Metrics of a model, the scores of lm-eval's requests as an artifact, and how long scoring them took."""
    point, work = run.point, run.folder.work(run.point.id)
    artifacts: dict[str, Any] = {}
    took: dict[str, Any] = {}
    items: dict[str, ItemScores] = {}
    metrics = measure(point, model, *run.held_out, items)
    if items:
        write_item_scores(work / ITEMS, items, {"point": point.id})
        artifacts["items"] = {"path": ITEMS, "digest": file_digest(work / ITEMS)}
    requests_file = run.folder.requests(point.dataset)
    if run.language and point.evaluation.get("tasks") and requests_file.is_file():
        batch, length = point.evaluation.get("batch", BATCH), point.training["length"]
        requests, start = read_requests(requests_file), time.perf_counter()
        score_requests(model, requests, work / "scores.json", batch_size=batch, max_length=length)
        took = {"scoring": {"seconds": time.perf_counter() - start, "tokens": sum(read_tokens(requests, length))}}
        artifacts["scores"] = {"path": "scores.json", "digest": file_digest(work / "scores.json")}
    return metrics, artifacts, took


def evaluate_saved(
    run: PointRun,
    model: nn.Module,
    history: History,
    parameters: dict[str, int],
    sparsity: dict[str, Any] | None = None,
) -> Result:
    """Evaluates a model and puts the `result` part of its record together.

    Args:
        run: The point.
        model: As `load_model` gives it.
        history: Curves and masks of its training.
        parameters: How many there are, in `total`, `prunable` and `live`.
        sparsity: Target and achieved sparsity; None for a dense model.
    """
    point, work = run.point, run.folder.work(run.point.id)
    metrics, artifacts, took = _scored(run, model)
    run.say("evaluated")
    chance = {"guessing_loss": run.guessing}
    if run.language:
        test = run.held_out[1]
        chance["unigram_loss"] = unigram_loss(test.train[:COUNTED], test.validation[:COUNTED], test.vocab_size)
    sizes = model_bytes(model)
    checkpoint = work / "checkpoint"
    weights = weights_file(checkpoint)
    on_disk = sum(os.path.getsize(file) for file in (weights, checkpoint / MANIFEST))
    metrics += [
        metric("weights_bytes", sizes.weights, unit="bytes", better="lower"),
        metric("mlp_bytes", sizes.mlp, unit="bytes", better="lower"),
        metric("checkpoint_bytes", on_disk, unit="bytes", better="lower"),
    ]
    artifacts["checkpoint"] = {"path": "checkpoint", "digest": file_digest(weights)}
    if history.masks:
        _save_masks(work / "masks.safetensors", history.masks)
        artifacts["masks"] = {"path": "masks.safetensors", "digest": file_digest(work / "masks.safetensors")}
    loss_unit = "nats/token" if run.language else "nats"
    return {
        "metrics": metrics,
        "curves": {
            name: {"unit": "fraction" if name.startswith("spars") else loss_unit, **curve}
            for name, curve in history.curves.items()
        },
        "sparsity": sparsity,
        "dataset": {"name": point.dataset, "digest": run.data.digest, "counts": run.data.counts},
        "parameters": parameters,
        **chance,
        **weights_of(point),
        "artifacts": artifacts,
        # Time is no result: it goes into the part of the record that says how the run went.
        "run": ({"training_seconds": history.seconds} if history.seconds["step"] else {}) | took,
    }


def _save_masks(file: Path, masks: dict[int, dict[str, Tensor]]) -> None:
    tensors = {
        f"step{step:06d}/{name}": mask.to(torch.uint8).cpu().contiguous()
        for step, by_name in masks.items()
        for name, mask in by_name.items()
    }
    with replacing(file, alone=True) as temporary:
        save_file(tensors, temporary)
