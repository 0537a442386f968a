"""One training point: data, model, training with pruning, checkpoint, and its evaluation in the sparse state."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import blast
from blast import datasets
from blast.distributed import is_first_rank
from blast.download.cache import cache_root
from blast.errors import BlastError
from blast.evaluation.class_logits import class_logits
from blast.evaluation.loss import evaluate_language
from blast.evaluation.metric import metric
from blast.evaluation.scoring import score_requests
from blast.evaluation.sparse_state import require_sparse_state
from blast.evaluation.top_k import evaluate_vision
from blast.experiment.plan.paths import TRAINING_STATE, GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.records.provenance import fingerprint
from blast.experiment.run.initial_model import start_model, weights_of
from blast.files import file_digest, read_json, replacing
from blast.model.memory import model_bytes
from blast.model.module_replacement import unwrapped
from blast.sparsity.config import SparsifyConfig
from blast.sparsity.one_shot import apply_masks_, one_shot_masks
from blast.sparsity.sparsifier import Sparsifier
from blast.training.compilation import compile_blocks, cross_entropy, cross_entropy_of, release_blocks
from blast.training.history import History
from blast.training.language_loss import token_logits, token_loss_of
from blast.training.launch import join, leave, own_share
from blast.training.loop import make_optimizer, train
from blast.training.parallel import gathered_state, in_parts, spread
from blast.training.settings import TrainingSettings


def _load_data(point: Point, folder: GridFolder) -> Any:
    """The prepared dataset; where the workflow found it out of reach, its reason is this point's cause."""
    facts = folder.data(point.dataset)
    if facts.is_file():
        known = read_json(facts, "dataset file", "delete it and run again.")
        if known["status"] != "ok":
            raise BlastError(known["cause"])
    module = datasets.get(point.dataset)
    cache = cache_root()
    module.fetch(cache)
    module.prepare(cache, point.data)
    return module.load(cache, point.data)


def _build(point: Point, data: Any, settings: TrainingSettings) -> nn.Module:
    torch.manual_seed(point.seed)
    return start_model(point.architecture, point.start, data, settings.length)


def _logits(model: nn.Module, inputs: Tensor) -> Tensor:
    """Of each token or image; `inputs` are token ids or pixels."""
    return class_logits(model, inputs) if inputs.is_floating_point() else token_logits(model, inputs)


def _train(
    point: Point, folder: GridFolder, data: Any, device: torch.device
) -> tuple[nn.Module | None, History, Sparsifier | None]:
    """The trained model in its dense state; where several processes held a part each, the first alone gets it."""
    settings = TrainingSettings.from_dict(point.training)
    model = _build(point, data, settings).to(device)
    if settings.compile:
        compile_blocks(model)
    model = spread(model, settings.parallel)
    optimizer = make_optimizer(model, settings)
    sparsifier = Sparsifier(model, optimizer, SparsifyConfig.from_dict(point.sparsify)) if point.sparsify else None
    language = datasets.get(point.dataset).MODALITY == "language"

    def batch_at(step: int) -> tuple[Tensor, Tensor]:
        if language:
            tokens = own_share(data.train_batch(step, settings.batch, settings.length, point.seed)).to(device)
            return tokens[:, :-1], tokens[:, 1:]
        images, labels = data.train_batch(step, settings.batch, point.seed)
        return own_share(images).to(device), own_share(labels).to(device)

    if language:
        chunks = data.validation_chunks(settings.length, settings.evaluate_limit).to(device)
        held_out = (chunks[:, :-1], chunks[:, 1:])
    else:
        images, labels = data.test(settings.evaluate_limit)
        held_out = (images.to(device), labels.to(device))

    token_loss, loss = token_loss_of(settings.compile), cross_entropy_of(settings.compile)

    def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        with settings.autocast(device):
            return token_loss(model, *batch) if language else loss(class_logits(model, batch[0]), batch[1])

    @torch.no_grad()
    def evaluate(model: nn.Module) -> float:
        if not (is_first_rank() or in_parts(model)):
            return math.nan  # the others wait for it in the next step
        model, total = unwrapped(model), 0.0
        for inputs, targets in zip(*(part.split(settings.batch) for part in held_out), strict=True):
            # Blocks that are compiled for training would be compiled again for this.
            with settings.autocast(device), torch.compiler.set_stance("force_eager"):
                total += cross_entropy(_logits(model, inputs), targets).item() * len(inputs)
        return total / len(held_out[0])

    with settings.algorithms(device):
        history = train(
            model,
            settings,
            batch_at=batch_at,
            loss_of=loss_of,
            evaluate=evaluate,
            optimizer=optimizer,
            sparsifier=sparsifier,
            state_file=folder.work(point.id) / TRAINING_STATE,
            # What other settings, data or code had begun is not gone on with.
            key=" ".join((point.digest, data.digest, fingerprint("train"))),
            say=print if is_first_rank() else lambda line: None,
        )
    model = unwrapped(model)
    release_blocks(model)
    if in_parts(model):
        weights = gathered_state(model)
        model = _build(point, data, settings) if is_first_rank() else None
        if model is not None:
            model.load_state_dict(weights)
            model.to(device)
        return model, history, sparsifier
    # What is counted and saved below starts from the dense state, whichever the run ended in.
    return blast.to_dense(model), history, sparsifier


def _prune_parent(point: Point, folder: GridFolder, device: torch.device) -> tuple[nn.Module, dict[str, Tensor]]:
    """The dense parent, pruned once by magnitude; as many steps as every other method, all of them dense."""
    parent = read_json(
        folder.record(point.parent), "record of the dense parent", f"run the point '{point.parent}' first."
    )
    if parent["status"] != "ok":
        raise BlastError(f"its dense parent '{point.parent}' failed ({parent['cause']}); mend that one first.")
    model = blast.load(folder.work(point.parent) / "checkpoint").to(device)
    config = SparsifyConfig.from_dict(point.sparsify)
    masks = one_shot_masks(model, config)
    apply_masks_(model, masks, config.block)
    return model, masks


def _sparsity(point: Point, masks: dict[str, Tensor], model: nn.Module) -> dict[str, Any]:
    """Target and achieved sparsity, of the whole and by matrix; `model` is in its dense state."""
    modules = dict(model.named_modules())
    matrices = {}
    for name, mask in masks.items():
        live, blocks = int(mask.sum()), mask.numel()
        matrices[name] = {
            "type": type(modules[name]).__name__,
            "shape": [mask.shape[0] * point.block[0], mask.shape[1] * point.block[1]],
            "block": list(point.block),
            "blocks": blocks,
            "live": live,
            "target": point.sparsity,
            "achieved": 1 - live / blocks,
        }
    live = sum(entry["live"] * point.block[0] * point.block[1] for entry in matrices.values())
    total = sum(entry["shape"][0] * entry["shape"][1] for entry in matrices.values())
    return {"target": point.sparsity, "achieved": 1 - live / total if total else 0.0, "matrices": matrices}


def _save_masks(file: Path, masks: dict[int, dict[str, Tensor]]) -> None:
    tensors = {
        f"step{step:06d}/{name}": mask.to(torch.uint8).cpu().contiguous()
        for step, by_name in masks.items()
        for name, mask in by_name.items()
    }
    with replacing(file, alone=True) as temporary:
        save_file(tensors, temporary)


def _evaluate(
    point: Point, folder: GridFolder, data: Any, model: nn.Module
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Metrics and artifacts of the model as it was saved and loaded."""
    work = folder.work(point.id)
    language = datasets.get(point.dataset).MODALITY == "language"
    batch = point.evaluation.get("batch", 32)
    artifacts: dict[str, Any] = {}
    if not language:
        return evaluate_vision(model, data, batch=batch), artifacts
    limit = point.evaluation.get("limit")
    metrics = evaluate_language(model, data, length=point.training["length"], limit=limit, batch=batch)
    requests_file = folder.requests(point.dataset)
    if point.evaluation.get("tasks") and requests_file.is_file():
        score_requests(
            model, requests_file, work / "scores.json", batch_size=batch, max_length=point.training["length"]
        )
        artifacts["scores"] = {"path": "scores.json", "digest": file_digest(work / "scores.json")}
    return metrics, artifacts


def run_train_point(point: Point, folder: GridFolder) -> dict[str, Any] | None:
    """Runs a training point and returns the `result` part of its record; None where another process makes it.

    The model is trained (masked-dense), saved as a block-CSR checkpoint, loaded again in its sparse state, and only
    then evaluated: what is measured is what a user would load.
    """
    join()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    work = folder.work(point.id)
    clock = time.monotonic()
    data = _load_data(point, folder)
    if is_first_rank():
        print(f"data ready after {time.monotonic() - clock:.1f} s")
    if point.start == "parent":
        model, masks = _prune_parent(point, folder, device)
        history = History(masks={point.training["steps"] - 1: masks})
    elif point.start == "published":
        model = _build(point, data, TrainingSettings.from_dict(point.training)).to(device)
        history, masks = History(), {}
    else:
        model, history, sparsifier = _train(point, folder, data, device)
        if not leave():
            return None
        masks = sparsifier.masks if sparsifier else {}
    loss_unit = "nats/token" if datasets.get(point.dataset).MODALITY == "language" else "nats"
    model.eval()
    sparsity = _sparsity(point, masks, model) if masks else None
    parameters = sum(p.numel() for p in model.parameters())
    matrices = sparsity["matrices"].values() if sparsity else ()
    prunable = sum(entry["shape"][0] * entry["shape"][1] for entry in matrices)
    live = sum(entry["live"] * entry["block"][0] * entry["block"][1] for entry in matrices)

    print(f"trained after {time.monotonic() - clock:.1f} s")
    checkpoint = work / "checkpoint"
    blast.save(blast.to_sparse(model, masks) if masks else model, checkpoint)
    del model
    model = blast.load(checkpoint).to(device)
    if masks:
        require_sparse_state(model, masks)
    metrics, artifacts = _evaluate(point, folder, data, model)
    print(f"evaluated after {time.monotonic() - clock:.1f} s")
    sizes = model_bytes(model)
    on_disk = sum(os.path.getsize(file) for file in checkpoint.iterdir())
    metrics += [
        metric("weights_bytes", sizes.weights, unit="bytes", better="lower"),
        metric("mlp_bytes", sizes.mlp, unit="bytes", better="lower"),
        metric("checkpoint_bytes", on_disk, unit="bytes", better="lower"),
    ]
    artifacts["checkpoint"] = {"path": "checkpoint", "digest": file_digest(checkpoint / "model.safetensors")}
    if history.masks:
        _save_masks(work / "masks.safetensors", history.masks)
        artifacts["masks"] = {"path": "masks.safetensors", "digest": file_digest(work / "masks.safetensors")}
    return {
        "metrics": metrics,
        "curves": {
            name: {"unit": "fraction" if name.startswith("spars") else loss_unit, **curve}
            for name, curve in history.curves.items()
        },
        "sparsity": sparsity,
        "dataset": {"name": point.dataset, "digest": data.digest, "counts": data.counts},
        "parameters": {"total": parameters, "prunable": prunable, "live": live},
        **weights_of(point),
        "artifacts": artifacts,
        # Time is no result: it goes into the part of the record that says how the run went.
        "run": {"training_seconds": history.seconds} if history.seconds["step"] else {},
    }
