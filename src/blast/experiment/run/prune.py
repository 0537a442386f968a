"""Pruned training points: pruned while they train, or once after (one-shot)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from blast.evaluation.sparse_state import require_sparse_state
from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.run.point_models import load_model, load_other, save_model
from blast.experiment.run.point_result import Result, evaluate_saved
from blast.experiment.run.point_run import PointRun
from blast.experiment.run.train import logits_of, train_model
from blast.model.convert import to_dense, to_sparse
from blast.sparsity.config import SparsifyConfig
from blast.sparsity.one_shot_calibrated import prune_once_
from blast.sparsity.sparsifier import Sparsifier
from blast.training.history import History
from blast.training.launch import destroy_process_group
from blast.training.settings import TrainingSettings

# Tokens that one-shot pruning looks at, where it looks at activations.
CALIBRATION = 65_536


def run_pruned_point(point: Point, folder: GridFolder, code: str = "") -> Result | None:
    """Runs a point that is pruned while it trains; see `run_dense_point`.

    The model is saved as a block-CSR checkpoint, loaded in its sparse state, and only then evaluated.
    """
    run = PointRun.begin(point, folder)
    config = SparsifyConfig.from_dict(point.sparsify)
    model, history, sparsifier = train_model(run, code, lambda model, optimizer: Sparsifier(model, optimizer, config))
    if not destroy_process_group():
        return None
    # Sparsity is counted in the dense state, whichever the training ended in.
    return _save_and_evaluate(run, to_dense(model), history, sparsifier.masks)


def run_one_shot_point(point: Point, folder: GridFolder, code: str = "") -> Result:
    """Runs a point that prunes its trained dense parent once; nothing is trained."""
    run = PointRun.begin(point, folder)
    model = load_other(run, point.parent, "dense parent")
    config = SparsifyConfig.from_dict(point.sparsify)
    calibration = range(_calibration_batches(run.settings)) if config.calibrated else ()
    masks = prune_once_(model, config, (run.batch_at(step)[0] for step in calibration), logits_of)
    # Its masks are those of the last step: it has trained as long as the other methods, all of it dense.
    history = History(masks={point.training["steps"] - 1: masks})
    return _save_and_evaluate(run, model, history, masks)


def _calibration_batches(settings: TrainingSettings) -> int:
    """Training batches of the calibration: as many as hold `CALIBRATION` tokens, or images' worth of them."""
    return max(1, CALIBRATION // (settings.batch * settings.length))


def _save_and_evaluate(run: PointRun, model: nn.Module, history: History, masks: dict[str, Tensor]) -> Result:
    """Saves a model in its sparse state and evaluates what was saved.

    Args:
        run: The point.
        model: The model in its dense state; made sparse.
        history: Curves and masks of its training.
        masks: Its last masks, by matrix.
    """
    model.eval()
    sparsity = _sparsity(run.point, masks, model)
    matrices = sparsity["matrices"].values()
    parameters = {
        "total": sum(p.numel() for p in model.parameters()),
        "prunable": sum(entry["shape"][0] * entry["shape"][1] for entry in matrices),
        "live": sum(entry["live"] * entry["block"][0] * entry["block"][1] for entry in matrices),
    }
    save_model(run, to_sparse(model, masks))
    saved = load_model(run)
    require_sparse_state(saved, masks)
    return evaluate_saved(run, saved, history, parameters, sparsity)


def _sparsity(point: Point, masks: Mapping[str, Tensor], model: nn.Module) -> dict[str, Any]:
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
