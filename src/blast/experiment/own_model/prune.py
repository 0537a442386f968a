"""`blast prune`: a pretrained model and a text in, a sparse model out."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from blast.checkpoint.checkpoint import load, save
from blast.errors import BlastError
from blast.evaluation.loss import evaluate_language
from blast.evaluation.scoring import max_length_of
from blast.evaluation.wrecked import unigram_loss
from blast.experiment.own_model import recipe
from blast.experiment.own_model.choice import chosen_block, chosen_matrices
from blast.experiment.own_model.decoding import decode_rates
from blast.experiment.own_model.memory import check_memory, free_bytes, gigabytes, training_bytes
from blast.experiment.own_model.opening import ModelSource, find_model, load_tokenizer
from blast.experiment.own_model.report import describe, losses, sparsity_facts, verdict
from blast.experiment.own_model.step_time import REST_OF_STEP, as_time, faster_dtype, step_seconds
from blast.experiment.own_model.text import read_text
from blast.experiment.own_model.unfinished import REPORT, Unfinished, check_place, finished_report
from blast.files import json_digest, write_json
from blast.model.convert import to_dense, to_sparse
from blast.model.discovery import MLP, match_matrices
from blast.model.fuse import fuse
from blast.model.memory import model_bytes
from blast.sparsity.sparsifier import Sparsifier
from blast.training.distillation import distilled_token_loss
from blast.training.language_loss import token_loss_of
from blast.training.loop import make_optimizer, train

if TYPE_CHECKING:
    from blast.datasets._text.language_data import LanguageData
    from blast.sparsity.config import SparsifyConfig
    from blast.training.settings import TrainingSettings

# Held-out tokens that both models are measured on.
HELD_OUT = {"cpu": 8192, "cuda": 131_072}
# Training tokens that the unigram is counted on.
COUNTED = 5_000_000
# Seconds for loading and saving at the end, and for the speed of decoding.
AT_THE_END = 20.0
# Part of the time that is left to the training; the rest is in hand, because a machine can become slower.
PLANNED = 0.95
REMEDY = "give a smaller --batch or --length, or a smaller model"


@dataclass(frozen=True)
class PruneOptions:
    """What the user asked for.

    Attributes:
        model: See `find_model`.
        text: See `read_text`.
        out: Folder of the result.
        sparsity: Share of empty blocks in the pruned matrices.
        block: Side of a block; None for the largest that fits.
        minutes: Time for the whole command; None if `steps` are given.
        steps: Optimization steps; None if `minutes` are given.
        teacher: Whether the dense model teaches the sparse one.
        length: Tokens a sequence.
        batch: Sequences a step.
        learning_rate: Its peak.
        seed: Seed of the order of the text.
        dense_layers: Layers that stay dense.
    """

    model: str
    text: tuple[str, ...]
    out: Path
    sparsity: float
    block: int | None = None
    minutes: float | None = None
    steps: int | None = None
    teacher: bool = True
    length: int = 256
    batch: int = 4
    learning_rate: float = 5e-4
    seed: int = 0
    dense_layers: tuple[int, ...] = ()

    def key(self, source: ModelSource, data: LanguageData) -> str:
        """Digest of everything that determines the result."""
        values = asdict(self)
        del values["out"], values["model"], values["text"]
        return json_digest([values, source.digest, data.digest])


def prune(options: PruneOptions, say: Callable[[str], Any] = print) -> dict[str, Any]:
    """Prunes a model while it trains on a text, and saves it with its tokenizer.

    Says first what it takes, then its progress, then what the sparse model cost and gains. A stopped run goes on from
    its last saved state.

    Args:
        options: What the user asked for.
        say: Prints a line.

    Returns:
        The report, which is also in `prune.json` of the folder.

    Raises:
        BlastError: if something does not exist or fit; the message says what to do.
    """
    began = time.monotonic()
    check_place(options.out)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source = find_model(options.model, say)
    data = read_text(options.text, source, options.length, say)
    key = options.key(source, data)
    unfinished = Unfinished(options.out, key)
    if (report := finished_report(options.out, key)) is not None:
        say(f"{options.out} is done; it was pruned by the same command.")
        for line in describe(report):
            say(line)
        return report
    run = _Run(options, source, data, unfinished, device, began, say)
    return run.finish(*run.train(run.plan()))


class _Run:
    """One run of the command.

    Args:
        options: What the user asked for.
        source: The model.
        data: The text.
        unfinished: Where the state of a stopped run is.
        device: The GPU, or the CPU.
        began: When it began, on the monotonic clock.
        say: Prints a line.
    """

    def __init__(
        self,
        options: PruneOptions,
        source: ModelSource,
        data: LanguageData,
        unfinished: Unfinished,
        device: torch.device,
        began: float,
        say: Callable[[str], Any],
    ) -> None:
        self.options, self.source, self.data, self.unfinished = options, source, data, unfinished
        self.device, self.began, self.say = device, began, say
        self._check_memory_to_load()
        self.model = to_dense(source.load()).to(device)
        self._check_fit()
        self.every = match_matrices(self.model, MLP)
        self.matrices = chosen_matrices(self.model, source.name, options.dense_layers)
        self.block = chosen_block(self.matrices, options.block)
        self.tokens = options.batch * options.length
        self._say_what_is_pruned()
        self.dense_bytes = model_bytes(self.model)
        self.teacher: nn.Module | None = None
        if options.teacher:
            self.teacher = copy.deepcopy(self.model).eval().requires_grad_(False)

    def _check_memory_to_load(self) -> None:
        needed = training_bytes(self.source.parameters, None, 0, self.options.teacher)
        check_memory(f"pruning {self.source.name}", needed, free_bytes(self.device), "choose a smaller model")

    def _check_fit(self) -> None:
        """Refuses sequences that the model cannot read, and a tokenizer of another model."""
        longest, embedded = max_length_of(self.model), self.model.get_input_embeddings().weight.shape[0]
        if self.options.length > longest:
            raise BlastError(
                f"{self.source.name} reads {longest} tokens at once and --length is {self.options.length}; lower it."
            )
        if self.data.vocab_size > embedded:
            raise BlastError(
                f"the tokenizer has {self.data.vocab_size} tokens and {self.source.name} embeds {embedded}, so it "
                "belongs to another model; save the right tokenizer in the folder."
            )

    def _say_what_is_pruned(self) -> None:
        weights = sum(target.shape[0] * target.shape[1] for target in self.matrices)
        dense = ", ".join(map(str, self.options.dense_layers))
        self.say(
            f"{self.source.name}: {self.source.parameters / 1e6:.1f} million weights; {weights / 1e6:.1f} million in "
            f"{len(self.matrices)} matrices are pruned to {100 * self.options.sparsity:g} % in blocks of {self.block}"
            f"{f'; layers {dense} stay dense' if dense else ''}"
        )
        counts = self.data.counts
        self.say(f"text: {counts['train_tokens']:,} tokens to train on, {counts['validation_tokens']:,} held out")

    def plan(self) -> dict[str, Any]:
        """Steps, dtype and the losses of the dense model, measured now or by a stopped run. Says what it takes."""
        known = self.unfinished.read()
        needed = training_bytes(self.source.parameters, self.model.config, self.tokens, self.options.teacher)
        held = sum(p.numel() * p.element_size() for p in self.model.parameters()) * (2 if self.teacher else 1)
        free = free_bytes(self.device)
        check_memory(f"pruning {self.source.name} with {self.tokens} tokens a step", needed - held, free, REMEDY)
        if known is None:
            known = self._measure()
            self.unfinished.write(known)
        else:
            self.say("goes on with a run that was stopped")
        on_gpu = self.device.type == "cuda"
        where = torch.cuda.get_device_name() if on_gpu else f"the CPU ({torch.get_num_threads()} threads)"
        steps = known["steps"]
        self.say(
            f"takes about {as_time(steps * known['step_seconds'])} on {where}: {steps} steps of {self.options.batch} x "
            f"{self.options.length} tokens, {known['step_seconds']:.2f} s each in {known['dtype']}, "
            f"{steps * self.tokens:,} tokens in all; {gigabytes(needed)} of memory"
        )
        bits = known["dense"]
        self.say(f"dense: {bits['bits_per_byte']:.3f} bits a byte on the held-out text")
        return known

    def _measure(self) -> dict[str, Any]:
        """Measures the dense model and the time of a step, and decides how many steps there are."""
        start = time.monotonic()
        dense = self._losses(self.model)
        evaluation = time.monotonic() - start
        self.model.train()
        small = self.data.train_batch(0, 1, self.options.length, self.options.seed).to(self.device)
        dtype = faster_dtype(self.model, self._loss_in, small)
        batch = self.data.train_batch(0, self.options.batch, self.options.length, self.options.seed).to(self.device)
        seconds = step_seconds(self.model, self._loss_in, batch, dtype, rounds=2) * REST_OF_STEP
        steps = self.options.steps
        if steps is None:
            left = 60 * self.options.minutes - (time.monotonic() - self.began) - 1.2 * evaluation - AT_THE_END
            steps = int(PLANNED * left / seconds)
            if steps < recipe.FEWEST_STEPS:
                needed = (60 * self.options.minutes - left + recipe.FEWEST_STEPS * seconds / PLANNED) / 60
                raise BlastError(
                    f"{self.options.minutes:g} minutes are too short here, where a step of {self.tokens} tokens takes "
                    f"{seconds:.1f} s; give --minutes {needed + 0.5:.0f} or more, or a smaller --batch or --length."
                )
        return {"steps": steps, "dtype": dtype, "step_seconds": seconds, "dense": dense}

    def _losses(self, model: nn.Module) -> dict[str, Any]:
        """Loss of a model on the held-out text, in float32."""
        limit = max(8, HELD_OUT[self.device.type] // self.options.length)
        return losses(
            evaluate_language(model, self.data, length=self.options.length, limit=limit, batch=self.options.batch)
        )

    def _loss_in(self, tokens: Tensor, dtype: str) -> Tensor:
        """The training loss of a batch `[n, length + 1]`, with products in a dtype."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            return self._loss(self.model, tokens[:, :-1], tokens[:, 1:])

    @property
    def _loss(self) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
        if self.teacher is None:
            return token_loss_of(False)
        return distilled_token_loss(self.teacher, recipe.TEACHER, False)

    def train(self, plan: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor], float]:
        """Trains and prunes the model in place; returns the plan, the masks, and the seconds of all steps."""
        options = self.options
        settings = recipe.training_settings(
            steps=plan["steps"], batch=options.batch, length=options.length, learning_rate=options.learning_rate,
            dtype=plan["dtype"], on_gpu=self.device.type == "cuda",
        )  # fmt: skip
        names = [target.name for target in self.matrices]
        config = recipe.sparsify_config(
            sparsity=options.sparsity, block=self.block, steps=plan["steps"], names=names, seed=options.seed
        )
        optimizer = make_optimizer(self.model, settings)
        sparsifier = Sparsifier(self.model, optimizer, config)
        with settings.algorithms(self.device):
            history = self._run_loop(settings, config, optimizer, sparsifier, plan)
        return plan, sparsifier.masks, history.spent["value"]

    def _run_loop(
        self,
        settings: TrainingSettings,
        config: SparsifyConfig,
        optimizer: torch.optim.Optimizer,
        sparsifier: Sparsifier,
        plan: dict[str, Any],
    ) -> Any:
        loss, steps = self._loss, plan["steps"]
        first: list[tuple[int, float]] = []

        def batch_at(step: int) -> tuple[Tensor, Tensor]:
            tokens = self.data.train_batch(step, settings.batch, settings.length, self.options.seed).to(self.device)
            return tokens[:, :-1], tokens[:, 1:]

        def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            with settings.autocast(self.device):
                return loss(model, *batch)

        def say(line: str) -> None:
            done, now = sparsifier.step_count, time.monotonic()
            first.append((done, now))
            pace = (now - first[0][1]) / (done - first[0][0]) if done > first[0][0] else plan["step_seconds"]
            if line.startswith("step "):
                sparsity = 100 * sparsifier.sparsity_achieved
                line = f"{line}, {sparsity:.0f} % sparse, {as_time((steps - done) * pace)} left"
            self.say(line)

        try:
            return train(
                self.model,
                settings,
                batch_at=batch_at,
                loss_of=loss_of,
                # The held-out loss is measured once, of the finished model.
                evaluate=lambda model: float("nan"),
                optimizer=optimizer,
                sparsifier=sparsifier,
                state_file=self.unfinished.state_file,
                key=self.unfinished.key,
                say=say,
                remedy="lower --learning-rate",
            )
        except KeyboardInterrupt:
            if self.unfinished.state_file.is_file():
                self.say(f"the state of the training is in {self.unfinished.folder}")
            raise

    def finish(self, plan: dict[str, Any], masks: dict[str, Tensor], training: float) -> dict[str, Any]:
        """Saves the sparse model, loads it again, measures it beside the dense one, and says what it cost and gains."""
        options = self.options
        model = to_dense(self.model).eval()
        after = self._losses(model)
        sparsity = sparsity_facts(model, self.every, masks)
        save(to_sparse(model, masks), options.out, processing_class=load_tokenizer(self.source))
        sparse, dense = fuse_if_possible(load(options.out).to(self.device)), self.teacher
        if dense is None:
            dense = to_dense(self.source.load()).to(self.device)
        prompt = torch.from_numpy(self.data.validation[:64].astype("int64"))[None]
        rates = decode_rates({"dense": dense, "sparse": sparse}, prompt)
        sizes = model_bytes(sparse)
        unigram = unigram_loss(self.data.train[:COUNTED], self.data.validation[:COUNTED], self.data.vocab_size)
        report = {
            "key": self.unfinished.key,
            "model": self.source.name,
            "text": list(options.text),
            "options": {k: v for k, v in asdict(options).items() if k not in ("model", "text", "out")},
            "block": list(self.block),
            "steps": plan["steps"],
            "tokens_a_step": self.tokens,
            "dtype": plan["dtype"],
            "dense": plan["dense"]
            | {
                "tokens_per_second": rates["dense"],
                "bytes": self.dense_bytes.weights,
                "mlp_bytes": self.dense_bytes.mlp,
            },
            "sparse": after | {"tokens_per_second": rates["sparse"], "bytes": sizes.weights, "mlp_bytes": sizes.mlp},
            "sparsity": sparsity,
            "verdict": verdict(after, plan["dense"], unigram, self.data.vocab_size),
            "seconds": {"all": time.monotonic() - self.began, "training": training},
        }
        write_json(options.out / REPORT, report)
        self.unfinished.remove()
        for line in describe(report):
            self.say(line)
        self.say(f'saved in {options.out}; try it: blast generate {options.out} "…"')
        return report


def fuse_if_possible(model: nn.Module) -> nn.Module:
    """The model with its sparse MLPs fused where they can be; others run layer by layer."""
    try:
        return fuse(model)
    except BlastError:
        return model
