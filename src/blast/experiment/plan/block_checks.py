"""Checks of a block of a config: whether its methods, its models and its data fit the levers that it switches on."""

from __future__ import annotations

import itertools

from blast import architectures, datasets
from blast.errors import BlastError
from blast.experiment.plan.config import Config, GridBlock
from blast.sparsity.config import METHOD_DETAILS, METHODS
from blast.training.distillation import DENSE


def _prunes_once(method: str) -> bool:
    return method in METHOD_DETAILS and METHOD_DETAILS[method].prunes_parent


def check_teacher(block: GridBlock) -> None:
    """Refuses a teacher that does not exist, cannot be read, or teaches nothing.

    Raises:
        BlastError: says which, and what to write.
    """
    if block.distillation is None:
        return
    if block.variant is None:
        raise BlastError("a block with 'distillation' needs a 'variant', which names its points; add one.")
    once = [method for method in block.methods if _prunes_once(method)]
    if block.start == "published" or once:
        untrained = once[0] if once else "start: published"
        raise BlastError(
            f"'distillation' is for models that are trained, and '{untrained}' trains nothing; "
            "put it in a block without 'distillation'."
        )
    name = block.distillation.teacher
    if name == DENSE:
        return
    if architectures.get(name).weights is None:
        raise BlastError(f"the teacher '{name}' has no published weights; write 'teacher: dense', or another name.")
    for architecture, named in itertools.product(block.architectures, block.datasets):
        _check_published(name, named if block.start == "scratch" else datasets.with_tokenizer(named, architecture))


def _check_published(name: str, dataset: str) -> None:
    """Refuses a published teacher that does not know the tokens or the classes of a dataset."""
    teacher, modality = architectures.get(name), datasets.get(dataset).MODALITY
    if modality != teacher.modality:
        raise BlastError(
            f"the teacher '{name}' is published as a model of {teacher.modality} data, and '{dataset}' is "
            f"{modality} data, which it cannot teach; write 'teacher: dense'."
        )
    tokens = datasets.tokenizer_of(dataset)
    vocabulary = None if tokens is None else architectures.get(tokens).shape.vocab
    if teacher.modality == "language" and vocabulary != teacher.shape.vocab:
        raise BlastError(
            f"the teacher '{name}' has a vocabulary of {teacher.shape.vocab} tokens and '{dataset}' "
            f"{vocabulary or 'one of its own'}; take the dataset in its tokens: "
            f"'{datasets.base_name(dataset)}@{name}'."
        )


def check_permutation(config: Config, block: GridBlock) -> None:
    """Refuses `permute_hidden` for methods that prune while training: they would not permute anything.

    Raises:
        BlastError: names the first such method.
    """
    trained = [method for method in block.methods if METHODS.get(method) is not None and not _prunes_once(method)]
    if trained and (config.sparsify | block.sparsify).get("permute_hidden"):
        once = ", ".join(method for method in METHODS if _prunes_once(method))
        raise BlastError(
            f"'permute_hidden' is for methods that prune once, and '{trained[0]}' prunes while training; "
            f"set it in a block whose methods are among: {once}."
        )
