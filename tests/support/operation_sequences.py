"""Sequences of operations on a sparse model and on its dense reference, which have to agree after each of them.

The reference is plain PyTorch: the same model with dense weights that are zero outside the masks. Each operation is
done to both. `agree` then compares outputs, with and without gradients, all gradients, and the weights.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from operation_models import KINDS, Pair, Setting, inputs, mask_gradients
from operations import OPERATIONS
from torch import Tensor, nn

from blast.block_sparse.blocks import as_block


def run_sequence(kind: str, operations: Sequence[tuple[str, int]], setting: Setting) -> None:
    """Does the operations one by one and compares after each."""
    torch._dynamo.reset()
    pair = Pair(KINDS[kind], setting)
    try:
        agree(pair)
        for name, how in operations:
            OPERATIONS[name](pair, how)
            agree(pair)
    finally:
        pair.remove_hooks()


def agree(pair: Pair) -> None:
    """Compares outputs without and with gradients, the gradients, and the weights."""
    setting, x = pair.setting, inputs(pair)
    for *_, seen in pair.hooks:
        seen[:] = [0, 0]
    dense = pair.dense if setting.dtype == torch.float32 else copy.deepcopy(pair.dense).float()
    with torch.no_grad():
        torch.manual_seed(3)
        expected = dense(x.to(dense.last.weight))
        torch.manual_seed(3)
        close(pair.run(x), expected, setting.same, "output without gradients")
    with torch.inference_mode():
        torch.manual_seed(3)
        close(pair.model(x), expected, setting.same, "output in inference mode")
    results = []
    for model, run in ((dense, dense), (pair.model, pair.run)):
        model.zero_grad()
        given = x.to(model.last.weight, copy=True).requires_grad_()
        torch.manual_seed(3)
        out = run(given)
        out.float().square().mean().backward()
        results.append((out, given.grad, model))
    (expected, grad, _), (out, sparse_grad, model) = results
    close(out, expected, setting.same, "output with gradients")
    close(sparse_grad, grad, setting.gradients, "gradient of the input")
    mask_gradients(pair, dense)
    compare_parameters(pair, dense, model)
    for *_, seen in pair.hooks:
        # The sparse model also ran in inference mode: three calls for two of the dense model.
        assert 2 * seen[0] == 3 * seen[1], "a hook was not called as often as in the dense model"
    for each in (dense, model):
        each.zero_grad()


def compare_parameters(pair: Pair, dense: nn.Module, model: nn.Module) -> None:
    """Compares weights and gradients by name; those of a block-sparse matrix at its live blocks."""
    setting = pair.setting
    sparse = dict(model.named_parameters())
    scale = max((p.grad.norm().item() for p in dense.parameters() if p.grad is not None), default=0.0)
    for name, parameter in dense.named_parameters():
        matrix = name.removesuffix(".weight")
        if matrix in pair.masks:
            ours = sparse[f"{matrix}.values"]
            index = model.get_submodule(matrix).matrix().index
            assert torch.equal(index.mask().cpu(), pair.masks[matrix]), f"another mask of {matrix}"
            theirs, grad = (live(tensor, pair, matrix) for tensor in (parameter, parameter.grad))
        else:
            ours, theirs, grad = sparse[name], parameter, parameter.grad
        assert ours.dtype == setting.dtype, name
        close(ours, theirs, setting.same, name)
        assert ours.requires_grad == parameter.requires_grad, name
        if grad is None or not grad.numel():
            continue
        ours_grad = torch.zeros_like(grad) if ours.grad is None else ours.grad
        assert (ours_grad.double() - grad.double()).norm() <= setting.gradients * scale, f"gradient of {name}"


def live(tensor: Tensor | None, pair: Pair, matrix: str) -> Tensor | None:
    """The live blocks of a dense weight or gradient."""
    if tensor is None:
        return None
    mask = pair.masks[matrix].to(tensor.device)
    rows, cols = as_block(pair.setting.block)
    squares = tensor.detach().reshape(mask.shape[0], rows, mask.shape[1], cols).transpose(1, 2)
    return squares[mask]


def close(out: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    difference = (out.detach().double() - expected.detach().double()).norm()
    scale = expected.detach().double().norm()
    assert difference <= tolerance * scale, f"{what}: off by {difference / scale:.2g}"
