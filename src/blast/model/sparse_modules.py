"""Builds the block-sparse modules that replace dense ones: a `BlockLinear` for a linear layer, or `SparseExperts`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import nn

from blast.block_sparse.csr import BlockCSR
from blast.errors import BlastError
from blast.layers.block_linear import BlockLinear, IndexBuffers
from blast.layers.sparse_experts import ExpertsForm, SparseExperts
from blast.model.experts import form_of
from blast.model.target import Target


class SparseMatrix(NamedTuple):
    """A matrix of a dense model, and what takes its place.

    Attributes:
        target: The dense matrix.
        matrix: Its live blocks.
        index: The buffers of their index; matrices with equal masks share them.
    """

    target: Target
    matrix: BlockCSR
    index: IndexBuffers


def sparse_modules(matrices: Iterable[SparseMatrix]) -> dict[int, nn.Module]:
    """The block-sparse module for the `id` of each dense one, as `replace_modules` takes them.

    Args:
        matrices: The matrices, in any order; of a parameter with experts all of them (see `check_all_experts`).
    """
    replacements: dict[int, nn.Module] = {}
    experts: dict[int, tuple[nn.Module, dict[str, dict[int, BlockLinear]]]] = {}
    for target, matrix, index in matrices:
        if target.expert is None:
            replacements[id(target.module)] = BlockLinear.replacing(target.module, matrix, index)
            continue
        layer = BlockLinear(matrix, index=index)
        layer.transposed = target.transposed
        _, layers = experts.setdefault(id(target.module), (target.module, {}))
        layers.setdefault(target.expert.parameter, {})[target.expert.number] = layer
    for key, (module, layers) in experts.items():
        form = form_of(module)
        assert isinstance(form, ExpertsForm)
        stacks = {name: [each[number] for number in sorted(each)] for name, each in layers.items()}
        replacements[key] = SparseExperts(module, form, stacks)
    return replacements


def check_all_experts(targets: Iterable[Target], what: str) -> None:
    """Checks that of each parameter with experts all of them are given, because they are converted together.

    Args:
        targets: The matrices to prune or to convert.
        what: What gives them, for the message: `the targets`.

    Raises:
        BlastError: if some experts of a parameter are missing.
    """
    given: dict[str, set[int]] = {}
    counts: dict[str, int] = {}
    for target in targets:
        if target.expert is not None:
            given.setdefault(target.parameter_name, set()).add(target.expert.number)
            counts[target.parameter_name] = len(target.parameter)
    for name, numbers in given.items():
        if len(numbers) < counts[name]:
            raise BlastError(
                f"{what} name {len(numbers)} of the {counts[name]} experts of '{name}', which are one parameter; "
                "name all of them, or none."
            )
