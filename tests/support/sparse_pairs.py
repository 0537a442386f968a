"""A tiny masked-dense model and the same model in its sparse state."""

from __future__ import annotations

import copy

import torch
from sparsity_models import MODELS, VOCABULARY
from torch import Tensor, nn

from blast.block_sparse.blocks import as_block, clear_dead_
from blast.model.convert import to_sparse
from blast.model.discovery import match_matrices

BLOCK = 16


def random_masks(model: nn.Module, block: int | tuple[int, int] = BLOCK, share: float = 0.4) -> dict[str, Tensor]:
    """Masks of the MLP matrices with about `share` of the blocks live; the same at each call."""
    shape, generator = as_block(block), torch.Generator().manual_seed(7)
    masks = {}
    for target in match_matrices(model):
        rows, cols = target.shape[0] // shape.rows, target.shape[1] // shape.cols
        masks[target.name] = torch.rand(rows, cols, generator=generator) < share
    return masks


def masked(model: nn.Module, masks: dict[str, Tensor]) -> nn.Module:
    """The model with its weights outside the masks set to zero, as a Sparsifier leaves them."""
    for target in match_matrices(model):
        block = (target.shape[0] // masks[target.name].shape[0], target.shape[1] // masks[target.name].shape[1])
        clear_dead_(target.weight, masks[target.name], as_block(block))
    return model


def pair(kind: str, block: int | tuple[int, int] = BLOCK) -> tuple[nn.Module, nn.Module, dict[str, Tensor]]:
    """A masked-dense model of a kind (`gpt2`, `llama`, `vit`), its sparse copy, and the masks; in eval mode."""
    dense = MODELS[kind]().eval()
    masks = random_masks(dense, block)
    masked(dense, masks)
    return dense, to_sparse(copy.deepcopy(dense), masks), masks


def inputs_of(kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if kind == "vit":
        return torch.randn(2, 3, 16, 16, generator=generator)
    return torch.randint(VOCABULARY, (2, 12), generator=generator)


def output_of(model: nn.Module, inputs: Tensor) -> Tensor:
    out = model(inputs)
    return out if isinstance(out, Tensor) else out.logits


class Plain(nn.Module):
    """A model that belongs to no library."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, width), nn.Linear(width, 8)
        self.register_buffer("count", torch.tensor(3))

    def forward(self, x):
        return self.down(self.up(x).relu())


def plain() -> Plain:
    return to_sparse(Plain(), {"up": torch.eye(4, dtype=torch.bool), "down": torch.eye(4, dtype=torch.bool)}, drop=True)
