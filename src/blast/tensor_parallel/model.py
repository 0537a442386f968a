"""Splits a model that is not loaded yet, and makes the loaded part one of several processes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from blast.block_sparse.conv1d import is_conv1d
from blast.block_sparse.csr import BlockIndex
from blast.block_sparse.sharding import PART_OF, only_a_part
from blast.errors import BlastError
from blast.model.discovery import find_mlps
from blast.tensor_parallel.attention import cut_attention, heads_of, is_attention
from blast.tensor_parallel.matrices import dense_parts, shrink, sparse_parts
from blast.tensor_parallel.mlp import cut_mlp
from blast.tensor_parallel.parts import Part
from blast.tensor_parallel.processes import Processes
from blast.tensor_parallel.vocabulary import Vocabulary, cut_vocabulary, join_vocabulary
from blast.tensor_parallel.watch import Watch

# Families whose attention and MLP are known to be all that is split.
FAMILIES = ("gpt2", "llama", "qwen2", "qwen3")


class Split(NamedTuple):
    """What one process keeps of a checkpoint.

    Attributes:
        parts: The parts of stored tensors, by name; other tensors are kept whole.
        matrices: The block-sparse matrices, as the manifest has them, with the sizes of the parts.
        sums: Names of the modules whose outputs have to be added up over the processes.
        vocabulary: How embedding and head were cut.
    """

    parts: dict[str, Part]
    matrices: dict[str, Any]
    sums: list[str]
    vocabulary: Vocabulary


def split_model(
    model: nn.Module, matrices: Mapping[str, Any], index_of: Callable[[str], BlockIndex], rank: int, size: int
) -> Split:
    """Gives a dense model the sizes of the part of one process, in place.

    Args:
        model: The dense model of a checkpoint, with its parameters on the meta device.
        matrices: The block-sparse matrices of the checkpoint, as the manifest has them.
        index_of: Reads the index of one of them.
        rank: The number of the process.
        size: The number of processes.

    Raises:
        BlastError: if the model is of another family, or cannot be split over so many processes.
    """
    refuse_family(model)
    heads = heads_of(model.config, rank, size)
    sums, cuts = [], []
    for name, module in model.named_modules():
        if is_attention(module):
            cuts += cut_attention(name, module, heads, first=rank == 0)
            sums.append(cuts[-1].name)
    for mlp in find_mlps(model):
        indices = {each.name: index_of(each.name) for each in mlp.targets if each.name in matrices}
        cuts += cut_mlp(mlp, indices, rank, size)
        sums.append(mlp.name)
    vocabulary, parts = cut_vocabulary(model, matrices, rank, size)
    new = dict(matrices)
    for cut in cuts:
        if cut.name in matrices:
            made, new[cut.name] = sparse_parts(cut, index_of(cut.name), matrices[cut.name])
        else:
            made = dense_parts(cut, is_conv1d(model.get_submodule(cut.name)))
        parts |= made
    for cut in cuts:
        shrink(model.get_submodule(cut.name), cut)
    return Split(parts, new, sums, vocabulary)


def refuse_family(model: nn.Module) -> None:
    """Raises if a model is of a family that cannot be split.

    Raises:
        BlastError: the message gives the families that can.
    """
    config: Any = getattr(model, "config", None)
    family = getattr(config, "model_type", type(model).__name__)
    if family not in FAMILIES or getattr(config, "add_cross_attention", False):
        raise BlastError(
            f"a model of the family '{family}' cannot be split over processes, only {', '.join(FAMILIES)} can; "
            "load it without tensor_parallel."
        )


def join(model: nn.Module, split: Split, processes: Processes) -> nn.Module:
    """Makes a loaded part work with the parts of the other processes, in place.

    Args:
        model: The part, in eval mode.
        split: What it is.
        processes: The processes.
    """
    adding = _adding(processes)
    for name in split.sums:
        model.get_submodule(name).register_forward_hook(adding)
    join_vocabulary(model, split.vocabulary, processes)
    model.__dict__[PART_OF] = (processes.rank, processes.size)
    for module in model.modules():
        if hasattr(type(module), "save_pretrained"):
            # Set on the instance: it would write a part as if it were the whole.
            module.__dict__["save_pretrained"] = partial(_save_pretrained, *model.__dict__[PART_OF])
    if hasattr(model, "generate"):
        on_gpu = any(parameter.is_cuda for parameter in model.parameters())
        watch = Watch(processes) if on_gpu and processes.size > 1 else None
        # On the instance, and no attribute that nn.Module would look at.
        model.__dict__["generate"] = SharedGenerate(model, processes, watch)
    return model.requires_grad_(False)


class SharedGenerate:
    """`generate` of a model in several parts: all processes get the same prompt and draw the same tokens.

    Args:
        model: The part of this process.
        processes: The processes.
        watch: Watches the other processes meanwhile; None where a lost process is noticed without it.
    """

    def __init__(self, model: nn.Module, processes: Processes, watch: Watch | None = None) -> None:
        self.model, self.processes, self.watch = model, processes, watch

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Calls the `generate` of transformers.

        Raises:
            BlastError: if the processes were given different prompts or settings, or one of them is lost.
        """
        with nullcontext() if self.watch is None else self.watch.working():
            found = self._call(inputs, named)
            # No process leaves before all have their tokens: one that is missing then is lost.
            self.processes.gather("done")
        return found

    def _call(self, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        given = {str(number): value for number, value in enumerate(inputs)} | named
        self.processes.check_equal(
            {name: _summary(value) for name, value in sorted(given.items()) if _is_plain(value)},
            "different arguments were given to generate",
            "give the same prompt and settings in each of them",
        )
        model: Any = self.model
        self.processes.share_random_state(next(model.parameters()).device)
        return type(model).generate(model, *inputs, **named)


def _save_pretrained(rank: int, size: int, *_: object, **__: object) -> None:
    raise only_a_part(rank, size)


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor | bool | int | float | str)


def _summary(value: Any) -> Any:
    """A value, or the digest of a tensor."""
    if not isinstance(value, Tensor):
        return value
    content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return (*value.shape, str(value.dtype), hashlib.sha256(content).hexdigest())


def _adding(processes: Processes) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    """A hook that adds the outputs of a module up over the processes."""

    def add(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        if module.training or output.requires_grad:
            raise BlastError(
                "a model that is split over processes computes no gradients; call model.eval(), and give it inputs "
                "without gradients."
            )
        return processes.add_up(output)

    return add
