"""The model, its teacher and the text of `blast prune`, checked and in memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from blast.errors import BlastError
from blast.evaluation.loss import evaluate_language
from blast.evaluation.scoring import max_length_of
from blast.experiment.own_model import recipe
from blast.experiment.own_model.choice import chosen_block, chosen_matrices
from blast.experiment.own_model.memory import check_memory, free_bytes, gigabytes, training_bytes
from blast.experiment.own_model.options import AUTO, PruneOptions
from blast.experiment.own_model.report import losses
from blast.model.convert import to_dense
from blast.model.memory import model_bytes
from blast.training.distillation import distilled_token_loss
from blast.training.language_loss import token_loss_of

if TYPE_CHECKING:
    from blast.datasets._text.language_data import LanguageData
    from blast.experiment.own_model.opening import ModelSource
    from blast.model.target import Target

# Held-out tokens that both models are measured on.
HELD_OUT = {"cpu": 4096, "cuda": 131_072}
REMEDY = "give a smaller --batch or --length, or a smaller model"


class Workplace:
    """What all parts of one run need. Says first what it takes, and refuses what does not fit.

    Args:
        options: What the user asked for.
        source: The model.
        data: The text.
        device: The GPU, or the CPU.
        say: Prints a line.

    Attributes:
        model: The model, dense; it is pruned in place.
        teacher: A copy of the dense model; None without a teacher.
        every: All matrices of the MLPs.
        block: Shape of a block.
        tokens: Tokens of a step.
        dense_bytes: Memory of the dense model.
        started: Whether the model was pruned once before the training.

    Raises:
        BlastError: if something does not fit.
    """

    def __init__(
        self,
        options: PruneOptions,
        source: ModelSource,
        data: LanguageData,
        device: torch.device,
        say: Callable[[str], Any],
    ) -> None:
        self.options, self.source, self.data, self.device, self.say = options, source, data, device, say
        self.tokens, self.started = options.batch * options.length, False
        free = free_bytes(device)
        needed = training_bytes(source.parameters, None, 0, options.teacher)
        check_memory(f"pruning {source.name}", needed, free, "choose a smaller model")
        self.model: Any = to_dense(source.load()).to(device)
        self._check_fit()
        # All layers, also where some stay dense: which ones is not known yet.
        self.every = chosen_matrices(self.model, source.name)
        self.block = chosen_block(self.every, options.block)
        self.matrices_without(() if options.dense_layers == AUTO else options.dense_layers)
        needed = training_bytes(source.parameters, self.model.config, self.tokens, options.teacher)
        check_memory(f"pruning {source.name} with {self.tokens} tokens a step", needed, free, REMEDY)
        self._say_what_it_takes(needed, free)
        self.dense_bytes = model_bytes(self.model)
        self.teacher: nn.Module | None = None
        if options.teacher:
            self.teacher = copy.deepcopy(self.model).eval().requires_grad_(False)

    def matrices_without(self, dense_layers: Sequence[int]) -> list[Target]:
        """The matrices that are pruned if these layers stay dense."""
        return chosen_matrices(self.model, self.source.name, dense_layers)

    def losses(self, model: nn.Module) -> dict[str, Any]:
        """Loss of a model on the held-out text, in float32."""
        limit = max(8, HELD_OUT[self.device.type] // self.options.length)
        return losses(evaluate_language(model, self.data, length=self.options.length, limit=limit, batch=8))

    def batch(self, step: int, batch: int | None = None) -> Tensor:
        """Token ids of a training step `[batch, length + 1]`."""
        tokens = self.data.train_batch(step, batch or self.options.batch, self.options.length, self.options.seed)
        return tokens.to(self.device)

    def loss(self) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
        """The training loss: a function of model, tokens and targets."""
        if self.teacher is None:
            return token_loss_of(False)
        return distilled_token_loss(self.teacher, recipe.TEACHER, False)

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

    def _say_what_it_takes(self, needed: int, free: int) -> None:
        options, counts = self.options, self.data.counts
        where = "the CPU"
        if self.device.type == "cuda":
            where = torch.cuda.get_device_name(self.device)
        long = f"{options.steps} steps" if options.minutes is None else f"about {options.minutes:g} minutes"
        self.say(
            f"pruning {self.source.name} takes {long} on {where} and {gigabytes(needed)} of memory "
            f"({gigabytes(free)} are free)"
        )
        self.say(f"text: {counts['train_tokens']:,} tokens to train on, {counts['validation_tokens']:,} held out")
