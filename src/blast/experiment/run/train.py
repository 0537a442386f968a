"""How a point is trained; `run_dense_point` runs one that is not pruned.

`run.prune` builds the pruned points on the same parts. This module does not import `blast.sparsity`, so that an edit
of the pruning leaves the fingerprints of dense points as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from blast import architectures
from blast.distributed import is_first_rank
from blast.evaluation.class_logits import class_logits
from blast.experiment.plan.paths import TRAINING_STATE, GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.run.point_models import load_model, save_model, teacher_of
from blast.experiment.run.point_result import Result, evaluate_saved
from blast.experiment.run.point_run import PointRun
from blast.experiment.run.progress_file import TRAINING
from blast.experiment.run.step_file import tell_steps
from blast.experiment.run.stopping import POINT_STOP
from blast.model.module_replacement import unwrapped
from blast.training.compilation import compile_blocks, cross_entropy, cross_entropy_of, release_blocks
from blast.training.distillation import Distillation, distilled_class_loss, distilled_token_loss
from blast.training.history import History
from blast.training.language_loss import Loss, token_logits, token_loss_of
from blast.training.launch import destroy_process_group
from blast.training.loop import make_optimizer, train
from blast.training.parallel import full_model_state, is_fully_sharded, parallelize

if TYPE_CHECKING:
    from blast.sparsity.sparsifier import Sparsifier

# Makes the sparsifier of a model and its optimizer.
MakeSparsifier = Callable[[nn.Module, torch.optim.Optimizer], "Sparsifier"]


def run_dense_point(point: Point, folder: GridFolder, code: str = "") -> Result | None:
    """Runs a point that is not pruned: trained, or published weights as they are.

    The model is saved, loaded again, and only then evaluated: what is measured is what a user would load.

    Args:
        point: What to run.
        folder: Folder of its grid.
        code: Fingerprint of the code; a training state that other code saved is not resumed.

    Returns:
        The `result` part of its record; None where another process returns it.
    """
    run = PointRun.begin(point, folder)
    if point.start == "published":
        model, history = run.build_model().to(run.device), History()
    else:
        model, history, _ = train_model(run, code)
        if not destroy_process_group():
            return None
    model.eval()
    parameters, sparsity = {"total": sum(p.numel() for p in model.parameters()), "prunable": 0, "live": 0}, None
    if point.ffn is not None:
        parameters, sparsity = _small_dense_facts(point, parameters["total"])
    save_model(run, model)
    del model
    return evaluate_saved(run, load_model(run), history, parameters, sparsity)


def _small_dense_facts(point: Point, total: int) -> tuple[dict[str, int], dict[str, Any]]:
    """Parameters and sparsity of a `small_dense` model: its MLP weights, compared with those of the architecture."""
    shape = architectures.get(point.architecture).shape
    live = replace(shape, ffn=point.ffn).mlp_weights
    sparsity = {"target": point.sparsity, "achieved": 1 - live / shape.mlp_weights, "matrices": {}}
    return {"total": total, "prunable": shape.mlp_weights, "live": live}, sparsity


def logits_of(model: nn.Module, inputs: Tensor) -> Tensor:
    """Of each token or image; `inputs` are token ids or pixels."""
    return class_logits(model, inputs) if inputs.is_floating_point() else token_logits(model, inputs)


def train_model(
    run: PointRun, code: str, make_sparsifier: MakeSparsifier | None = None
) -> tuple[nn.Module | None, History, Sparsifier | None]:
    """Trains the model of a point.

    Args:
        run: The point.
        code: Fingerprint of the code.
        make_sparsifier: Prunes while training; None trains dense.

    Returns:
        The model (None in all processes but the first where each held a part of it), its curves, and the sparsifier.
    """
    point, data, device, settings, language = run.point, run.data, run.device, run.settings, run.language
    model = run.build_model().to(device)
    if settings.compile:
        compile_blocks(model)
    model = parallelize(model, settings.parallel)
    optimizer = make_optimizer(model, settings)
    sparsifier = make_sparsifier(model, optimizer) if make_sparsifier else None

    validation, _ = run.held_out
    if language:
        chunks = validation.validation_chunks(settings.length, settings.evaluate_limit).to(device)
        held_out = (chunks[:, :-1], chunks[:, 1:])
    else:
        images, labels = validation.test(settings.evaluate_limit)
        held_out = (images.to(device), labels.to(device))

    batch_loss = _loss_of(run, model)

    def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        with settings.autocast(device):
            return batch_loss(model, *batch)

    @torch.no_grad()
    def evaluate(model: nn.Module) -> float:
        if not (is_first_rank() or is_fully_sharded(model)):
            return math.nan  # the others wait for it in the next step
        model, total = unwrapped(model), 0.0
        for inputs, targets in zip(*(part.split(settings.batch) for part in held_out), strict=True):
            # Blocks that are compiled for training would be compiled again for this.
            with settings.autocast(device), torch.compiler.set_stance("force_eager"):
                total += cross_entropy(logits_of(model, inputs), targets).item() * len(inputs)
        return total / len(held_out[0])

    if is_first_rank():
        run.progress.phase(TRAINING)
    telling = tell_steps(point, run.folder, is_first_rank())
    with settings.algorithms(device), POINT_STOP.after_training(), telling as watch:
        history = train(
            model,
            settings,
            batch_at=run.batch_at,
            loss_of=loss_of,
            evaluate=evaluate,
            optimizer=optimizer,
            sparsifier=sparsifier,
            state_file=run.folder.work(point.id) / TRAINING_STATE,
            # A state of other settings, data or code is not resumed.
            key=" ".join((point.digest, data.digest, code)),
            say=print if is_first_rank() else lambda line: None,
            guessing=run.guessing,
            watch=watch,
            stop=lambda: POINT_STOP.asked,
        )
    model = unwrapped(model)
    release_blocks(model)
    if is_fully_sharded(model):
        weights = full_model_state(model)
        model = run.build_model() if is_first_rank() else None
        if model is not None:
            model.load_state_dict(weights)
            model.to(device)
    return model, history, sparsifier


def _loss_of(run: PointRun, model: nn.Module) -> Loss:
    """The training loss of a point, nats: a function of model, inputs and targets."""
    settings = run.settings
    if run.point.distillation is not None:
        distillation, teacher = Distillation.from_dict(run.point.distillation), teacher_of(run, model)
        if settings.compile:
            compile_blocks(teacher)
        if run.language:
            return distilled_token_loss(teacher, distillation, settings.compile)
        return distilled_class_loss(teacher, distillation, class_logits)
    if run.language:
        return token_loss_of(settings.compile)
    loss = cross_entropy_of(settings.compile)
    return lambda model, inputs, targets: loss(class_logits(model, inputs), targets)
