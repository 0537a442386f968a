"""How a point is trained, saved and evaluated; `run_dense_point` runs one that is not pruned.

`run.prune` builds the pruned points on the same parts. This module does not import `blast.sparsity`, so that an edit
of the pruning leaves the fingerprints of dense points as they are.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from blast import architectures, datasets
from blast.checkpoint.checkpoint import load, save
from blast.checkpoint.manifest import MANIFEST, weights_file
from blast.distributed import is_first_rank
from blast.download.cache import cache_root
from blast.errors import BlastError
from blast.evaluation.class_logits import class_logits
from blast.evaluation.item_scores import ItemScores, write_item_scores
from blast.evaluation.metric import metric
from blast.evaluation.requests import SEPARATE_TEST, read_requests
from blast.evaluation.scoring import read_tokens, score_requests
from blast.evaluation.wrecked import unigram_loss
from blast.experiment.plan.paths import ITEMS, PROGRESS, TRAINING_STATE, GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.run.initial_model import start_model, weights_of
from blast.experiment.run.measure import BATCH, held_out_parts, measure
from blast.experiment.run.progress_file import TRAINING, ProgressFile
from blast.experiment.run.step_file import tell_steps
from blast.experiment.run.stopping import POINT_STOP
from blast.files import file_digest, folder_digest, read_json, replacing
from blast.model.memory import model_bytes
from blast.model.module_replacement import unwrapped
from blast.training.compilation import compile_blocks, cross_entropy, cross_entropy_of, release_blocks
from blast.training.distillation import Distillation, check_teacher, distilled_class_loss, distilled_token_loss
from blast.training.history import History
from blast.training.language_loss import Loss, head_of, token_logits, token_loss_of
from blast.training.launch import destroy_process_group, init_process_group, local_batch
from blast.training.loop import make_optimizer, train
from blast.training.parallel import full_model_state, is_fully_sharded, parallelize
from blast.training.settings import TrainingSettings

if TYPE_CHECKING:
    from blast.sparsity.sparsifier import Sparsifier

Result = dict[str, Any]
# Tokens of the text that the unigram is counted on.
COUNTED = 5_000_000
# Makes the sparsifier of a model and its optimizer.
MakeSparsifier = Callable[[nn.Module, torch.optim.Optimizer], "Sparsifier"]


@dataclass(frozen=True)
class PointRun:
    """A training point while it runs.

    Attributes:
        point: What is run.
        folder: Folder of its grid.
        data: The prepared dataset.
        device: The GPU of this process, or the CPU.
        started: When it began, on the monotonic clock.
    """

    point: Point
    folder: GridFolder
    data: Any
    device: torch.device
    started: float

    @classmethod
    def begin(cls, point: Point, folder: GridFolder) -> PointRun:
        """Joins the other processes of the training, if there are any, and loads the data."""
        init_process_group()
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        started = time.monotonic()
        run = cls(point, folder, _load_data(point, folder), device, started)
        run.check_requests()
        if is_first_rank():
            run.say("data ready", then="starting")
        return run

    @cached_property
    def progress(self) -> ProgressFile:
        """Where it tells how far it is."""
        return ProgressFile(self.folder.work(self.point.id) / PROGRESS)

    def say(self, what: str, then: str | None = None) -> None:
        """Writes into the log what is done and how long it took, and what it does then."""
        print(f"{what} after {time.monotonic() - self.started:.1f} s")
        if then:
            self.progress.phase(then)

    def check_requests(self) -> None:
        """Refuses lm-eval requests of another tokenizer or of other documents, before anything is trained."""
        file = self.folder.requests(self.point.dataset)
        if self.language and self.point.evaluation.get("tasks") and file.is_file():
            settings = read_requests(file).settings
            separate = bool(self.point.evaluation.get(SEPARATE_TEST))
            if bool(settings.get(SEPARATE_TEST)) != separate:
                raise BlastError(
                    f"{file}: these requests were made {'without' if separate else 'for'} a separate test, but the "
                    f"point '{self.point.id}' has {'one' if separate else 'none'}; delete the file and run again."
                )
            made_with = settings.get("tokenizer")
            if made_with is not None and made_with != folder_digest(self.data.tokenizer_dir):
                raise BlastError(
                    f"{file}: these requests were made with another tokenizer than that of the dataset "
                    f"'{self.point.dataset}' here, so their scores would be wrong; delete the file and run again."
                )

    @property
    def settings(self) -> TrainingSettings:
        """Settings of the training."""
        return TrainingSettings.from_dict(self.point.training)

    @property
    def language(self) -> bool:
        """Whether it is a language model, rather than a classifier."""
        return datasets.get(self.point.dataset).MODALITY == "language"

    @property
    def guessing(self) -> float:
        """Loss of guessing among all tokens, or all classes, in nats."""
        return math.log(self.data.vocab_size if self.language else self.data.num_classes)

    @cached_property
    def held_out(self) -> tuple[Any, Any]:
        """The data for the learning curves and the data for the metrics, see `held_out_parts`."""
        return held_out_parts(self.point, self.data)

    def build_model(self) -> nn.Module:
        """The model before its first step, on the CPU; the seed of the point decides its fresh weights."""
        torch.manual_seed(self.point.seed)
        return start_model(self.point.architecture, self.point.start, self.data, self.settings.length, self.point.ffn)

    def batch_at(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a training step; of several processes, the share of this one."""
        settings, seed = self.settings, self.point.seed
        if self.language:
            tokens = self.data.train_batch(step, settings.batch, settings.length, seed)
            tokens = local_batch(tokens).to(self.device)
            return tokens[:, :-1], tokens[:, 1:]
        images, labels = self.data.train_batch(step, settings.batch, seed)
        return local_batch(images).to(self.device), local_batch(labels).to(self.device)


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


def _load_data(point: Point, folder: GridFolder) -> Any:
    """The prepared dataset; where the workflow found it out of reach, its reason is this point's cause."""
    facts = folder.data(point.dataset)
    if facts.is_file():
        try:
            known = read_json(facts, "dataset file", "run again.", ("status", "cause"))
        except BlastError:
            # Damaged facts say nothing; the dataset itself is verified below.
            known = {"status": "ok"}
        if known["status"] != "ok":
            raise BlastError(known["cause"])
    module = datasets.get(point.dataset)
    cache = cache_root()
    module.fetch(cache)
    module.prepare(cache, point.data)
    return module.load(cache, point.data)


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
        distillation, teacher = Distillation.from_dict(run.point.distillation), _teacher_of(run, model)
        if settings.compile:
            compile_blocks(teacher)
        if run.language:
            return distilled_token_loss(teacher, distillation, settings.compile)
        return distilled_class_loss(teacher, distillation, class_logits)
    if run.language:
        return token_loss_of(settings.compile)
    loss = cross_entropy_of(settings.compile)
    return lambda model, inputs, targets: loss(class_logits(model, inputs), targets)


def _save_masks(file: Path, masks: dict[int, dict[str, Tensor]]) -> None:
    tensors = {
        f"step{step:06d}/{name}": mask.to(torch.uint8).cpu().contiguous()
        for step, by_name in masks.items()
        for name, mask in by_name.items()
    }
    with replacing(file, alone=True) as temporary:
        save_file(tensors, temporary)


def save_model(run: PointRun, model: nn.Module) -> None:
    """Writes the checkpoint of a point, with the tokenizer of its data."""
    run.say("trained", then="evaluating")
    tokenizer = getattr(run.data, "tokenizer_dir", None)
    save(model, run.folder.work(run.point.id) / "checkpoint", processing_class=tokenizer)


def load_model(run: PointRun) -> nn.Module:
    """The model of a point from its checkpoint, in the state it was saved in."""
    return load(run.folder.work(run.point.id) / "checkpoint").to(run.device)


def load_other(run: PointRun, other: str, what: str) -> nn.Module:
    """The model of another point of the grid, on the device of this one.

    Args:
        run: The point that needs it.
        other: Its id.
        what: What it is to this point, for errors, for instance `"dense parent"`.

    Raises:
        BlastError: if that point has not run, or failed.
    """
    remedy = f"run the point '{other}' first."
    record = read_json(run.folder.record(other), f"record of the {what}", remedy, ("status", "cause", "result"))
    if record["status"] != "ok":
        raise BlastError(f"its {what} '{other}' failed ({record['cause']}); mend that one first.")
    trained_on = record["result"]["dataset"]["digest"]
    if trained_on != run.data.digest:
        raise BlastError(
            f"its {what} '{other}' was trained on other data or with another tokenizer "
            f"({trained_on[:19]}… instead of {run.data.digest[:19]}…); run that one again first."
        )
    return load(run.folder.work(other) / "checkpoint").to(run.device)


def _teacher_of(run: PointRun, model: nn.Module) -> nn.Module:
    """The teacher of a point that learns from one: a trained dense model of the grid, or published weights."""
    point, name = run.point, run.point.distillation["teacher"]
    if point.teacher is not None:
        name, teacher = point.teacher, load_other(run, point.teacher, "teacher")
    else:
        teacher = architectures.load(name, progress=run.say).to(run.device)
    if run.language:
        check_teacher(name, (len(head_of(teacher)[0]), len(head_of(unwrapped(model))[0])))
    elif point.teacher is None and (classes := architectures.get(name).shape.classes):
        check_teacher(name, (classes, run.data.num_classes))
    return teacher.eval().requires_grad_(False)


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
