"""Tiny models and a training step for the tests of the sparsifier: two layers, hidden size 64."""

from __future__ import annotations

from typing import Literal, get_args, get_origin

import torch
import torchvision
import transformers
from torch import Tensor, nn

from blast.block_sparse.blocks import BlockShape, as_block, block_squares, tiles
from blast.settings import field_hints
from blast.sparsity.config import SparsifyConfig
from blast.sparsity.sparsifier import Sparsifier

VOCABULARY = 96
# The values of each switch of `SparsifyConfig` that is a choice.
CHOICES = {name: get_args(hint) for name, hint in field_hints(SparsifyConfig).items() if get_origin(hint) is Literal}


def tiny_llama(layers: int = 2) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=64,
        intermediate_size=128,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=VOCABULARY,
    )
    return transformers.LlamaForCausalLM(config)


def tiny_gpt2(layers: int = 2) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=layers,
        n_embd=64,
        n_head=2,
        n_positions=32,
        vocab_size=VOCABULARY,
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return transformers.GPT2LMHeadModel(config)


def tiny_vit(layers: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.VisionTransformer(16, 8, layers, 2, 64, 128, num_classes=10)


MODELS = {"llama": tiny_llama, "gpt2": tiny_gpt2, "vit": tiny_vit}
OPTIMIZERS = {
    "sgd_momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.1),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.1),
}


def loss_of(model: nn.Module, step: int) -> Tensor:
    """A loss on data that depends on the step alone."""
    generator = torch.Generator().manual_seed(step)
    if isinstance(model, torchvision.models.VisionTransformer):
        images = torch.randn(4, 3, 16, 16, generator=generator)
        return nn.functional.cross_entropy(model(images), torch.randint(10, (4,), generator=generator))
    tokens = torch.randint(VOCABULARY, (2, 16), generator=generator)
    return model(input_ids=tokens, labels=tokens).loss


def train_step(sparsifier: Sparsifier) -> None:
    """One step of the loop that the documentation shows, clipping included."""
    model, optimizer = sparsifier.model, sparsifier.optimizer
    optimizer.zero_grad()
    loss_of(model, sparsifier.step_count).backward()
    sparsifier.step()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def weight_of(model: nn.Module, name: str) -> Tensor:
    """Weight `[out, in]` of a layer."""
    module = model.get_submodule(name)
    return module.weight.detach().t() if type(module).__name__ == "Conv1D" else module.weight.detach()


def block_norms(weight: Tensor, block: BlockShape) -> Tensor:
    """Frobenius norm of each block of a weight `[out, in]`."""
    return block_squares(tiles(weight, block)).sqrt()


def dead_elements(sparsifier: Sparsifier, name: str) -> Tensor:
    """Mask of elements `[out, in]`, true where a block is dead."""
    rows, cols = as_block(sparsifier.config.block)
    return ~sparsifier.masks[name].repeat_interleave(rows, dim=0).repeat_interleave(cols, dim=1)


def assert_dead_blocks_are_zero(sparsifier: Sparsifier) -> None:
    for name in sparsifier.masks:
        weight = weight_of(sparsifier.model, name)
        assert weight[dead_elements(sparsifier, name)].count_nonzero() == 0, name
