"""Short runs of the nano models in each execution state, for the tests of the switch from masked-dense to sparse."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from blast import architectures
from blast.layers.block_linear import BlockLinear
from blast.sparsity.config import SparsifyConfig
from blast.sparsity.sparsifier import Sparsifier

VOCABULARY = 64
STEPS = 12
SETTINGS = {"sparsity": 0.8, "block": 32, "steps": STEPS, "update_every": 2, "hold": 0.25, "initial_sparsity": 0.3}
OPTIMIZERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.1),
    "sgd_momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=1e-2),
}


def nano(name: str) -> nn.Module:
    torch.manual_seed(0)
    return architectures.build(name, vocab_size=VOCABULARY, context=64)


def nano_loss(model: nn.Module, seed: int) -> Tensor:
    """A loss on tokens that depend on the seed only. The model can learn that most tokens never occur."""
    tokens = torch.randint(VOCABULARY // 8, (2, 24), generator=torch.Generator().manual_seed(seed))
    tokens = tokens.to(next(model.parameters()).device)
    return model(input_ids=tokens, labels=tokens).loss


def sparsify(name: str, optimizer: str = "adamw", device: str = "cpu", **settings) -> Sparsifier:
    model = nano(name).to(device)
    return Sparsifier(model, OPTIMIZERS[optimizer](model.parameters()), SparsifyConfig(**{**SETTINGS, **settings}))


def steps(
    sparsifier: Sparsifier, last: int = STEPS, accumulate: int = 1, clip: float | None = 0.5, autocast: bool = False
) -> list[float]:
    """Trains up to a step and returns the losses."""
    losses = []
    while sparsifier.step_count < last:
        sparsifier.optimizer.zero_grad()
        for part in range(accumulate):
            with torch.autocast(next(sparsifier.model.parameters()).device.type, torch.bfloat16, enabled=autocast):
                loss = nano_loss(sparsifier.model, 100 * part + sparsifier.step_count)
            (loss / accumulate).backward()
            losses.append(loss.item())
        sparsifier.step()
        if clip is not None:
            nn.utils.clip_grad_norm_(sparsifier.model.parameters(), clip)
        sparsifier.optimizer.step()
    return losses


def dense_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weight of every linear layer, `[out, in]` or as its dense layer stores it."""
    return {
        name: module.weight.detach().clone()
        for name, module in model.named_modules()
        if isinstance(module, BlockLinear | nn.Linear) or type(module).__name__ == "Conv1D"
    }
