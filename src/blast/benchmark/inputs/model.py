"""A whole language model with random weights, made on its device: a sparse one is never dense anywhere."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import blast
from blast import architectures
from blast.architectures.inference_memory import Sparse
from blast.benchmark.inputs.masks import random_masks
from blast.block_sparse.blocks import as_block
from blast.checkpoint.builders import parameters_on_meta
from blast.layers.block_linear import IndexBuffers
from blast.model.discovery import find_mlps

# As GPT-2 initialises its weights; outputs stay finite.
SPREAD = 0.02


def random_model(
    architecture: str, sparse: Sparse | None, seed: int, dtype: torch.dtype, device: torch.device
) -> nn.Module:
    """An architecture with random weights, in eval mode, without gradients.

    Args:
        architecture: Name of the architecture.
        sparse: How its MLPs are sparse, with uniformly random masks of exactly that sparsity; None for a dense model.
        seed: Seed of weights and masks.
        dtype: Dtype of its parameters. Buffers keep theirs, as loading leaves them.
        device: Where its tensors are made. The host holds masks and indices.
    """
    with parameters_on_meta():
        model = architectures.build(architecture)
    if sparse is not None:
        blast.to_sparse(model, uniform_masks(model, sparse, seed))
    make_randomly(model, torch.Generator(device).manual_seed(seed), dtype, device)
    return model.eval().requires_grad_(False)


def uniform_masks(model: nn.Module, sparse: Sparse, seed: int) -> dict[str, Tensor]:
    """Uniformly random masks of all MLPs, by module name, on the CPU."""
    masks: dict[str, Tensor] = {}
    generator, block = torch.Generator().manual_seed(seed), as_block(sparse.block)
    for mlp in find_mlps(model):
        ffn, hidden = mlp.up.shape
        gated = mlp.gate is not None
        drawn = random_masks("uniform", hidden, ffn, gated, sparse.tied, sparse.sparsity, block, generator)
        masks |= {mlp.up.name: drawn.up, mlp.down.name: drawn.down}
        if mlp.gate is not None and drawn.gate is not None:
            masks[mlp.gate.name] = drawn.gate
    return masks


def make_randomly(model: nn.Module, generator: torch.Generator, dtype: torch.dtype, device: torch.device) -> None:
    """Gives each parameter on the meta device memory and random values, and moves the buffers."""
    made: dict[int, nn.Parameter] = {}  # tied parameters stay tied
    keep = []  # an id is that of another object once its own is gone
    for module in model.modules():
        if isinstance(module, IndexBuffers):
            module.to_empty(device=device)  # which restores a known mask
            continue
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in made:
                value = torch.empty(parameter.shape, dtype=dtype, device=device)
                if parameter.dim() > 1:
                    value.normal_(std=SPREAD, generator=generator)
                else:
                    value.fill_(1.0 if name == "weight" else 0.0)  # norms and biases
                made[id(parameter)] = nn.Parameter(value, requires_grad=False)
                keep.append(parameter)
            if parameter is not None:
                module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)
