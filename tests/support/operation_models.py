"""Small models in a sparse and a dense form, and the masks and settings that sequences of operations run with."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

import blast
from blast.block_sparse.blocks import as_block, clear_dead_
from blast.layers.sparse_mlp import SparseMlp
from blast.model.discovery import match_matrices

Masks = dict[str, Tensor]


class Gated(nn.Module):
    """An MLP with a gate, as those of Llama."""

    def __init__(self, hidden: int, wide: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, wide, bias=False)
        self.up_proj = nn.Linear(hidden, wide, bias=False)
        self.down_proj = nn.Linear(wide, hidden, bias=False)
        self.act_fn = nn.SiLU()

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Plain(nn.Module):
    """An MLP with biases and dropout, as those of GPT-2."""

    def __init__(self, hidden: int, wide: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(hidden, wide), nn.GELU(approximate="tanh"), nn.Linear(wide, hidden)
        self.dropout = nn.Dropout(0.0)

    def forward(self, x):
        return self.dropout(self.fc2(self.act(self.fc1(x))))


class Residual(nn.Module):
    """A norm, an MLP and a dense layer with a residual; the MLP may be used more than once."""

    def __init__(self, mlp: nn.Module, hidden: int, uses: int = 1) -> None:
        super().__init__()
        self.norm, self.mlp, self.last, self.uses = nn.LayerNorm(hidden), mlp, nn.Linear(hidden, hidden), uses

    def forward(self, x):
        for _ in range(self.uses):
            x = x + self.mlp(self.norm(x))
        return self.last(x)


def sequential(hidden: int, wide: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(hidden, wide), nn.GELU(), nn.Dropout(0.0), nn.Linear(wide, hidden), nn.Dropout(0.0))


@dataclass(frozen=True)
class Kind:
    """A kind of model: how it is built, and what its random masks are changed to."""

    mlp: Callable[[int, int], nn.Module]
    change: Callable[[Masks], None] = lambda masks: None
    uses: int = 1


def share(masks: Masks) -> None:
    masks["mlp.up_proj"] = masks["mlp.gate_proj"]


def kill_hidden(masks: Masks) -> None:
    """One hidden block that nothing computes, and one that nothing reads."""
    for name in ("mlp.gate_proj", "mlp.fc1", "mlp.0"):
        if name in masks:
            masks[name][0] = False
    for name in ("mlp.down_proj", "mlp.fc2", "mlp.3"):
        if name in masks:
            masks[name][:, 1] = False


def empty(*names: str) -> Callable[[Masks], None]:
    def change(masks: Masks) -> None:
        for name in names:
            masks[name][:] = False

    return change


KINDS = {
    "gated, separate masks": Kind(Gated),
    "gated, shared mask": Kind(Gated, share),
    "gated, dead hidden blocks": Kind(Gated, kill_hidden),
    "gated, no gate": Kind(Gated, empty("mlp.gate_proj")),
    "gated, no down": Kind(Gated, empty("mlp.down_proj")),
    "gated, used twice": Kind(Gated, uses=2),
    "plain": Kind(Plain),
    "plain, dead hidden blocks": Kind(Plain, kill_hidden),
    "plain, no up": Kind(Plain, empty("mlp.fc1")),
    "Sequential": Kind(sequential),
}


@dataclass(frozen=True)
class Setting:
    """Where and how a sequence runs.

    Attributes:
        same: Largest relative difference of outputs and weights.
        gradients: Largest relative difference of gradients.
    """

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    hidden: int = 16
    block: int | tuple[int, int] = 8
    backend: str = "eager"
    same: float = 1e-5
    gradients: float = 1e-4

    def dense(self, kind: Kind, seed: int, masks: Masks) -> nn.Module:
        """A dense model with zeros outside the masks."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = Residual(kind.mlp(self.hidden, 2 * self.hidden), self.hidden, kind.uses)
            for name, parameter in model.named_parameters():
                # The MLP is most of the output, so that an error in it is seen in bfloat16 too.
                nn.init.normal_(parameter, std=(2 if name.startswith("mlp.") else 1) * parameter.shape[-1] ** -0.5)
        for name, mask in masks.items():
            clear_dead_(model.get_submodule(name).weight.data, mask, as_block(self.block))
        return model.to(self.device, self.dtype).eval()

    def masks(self, kind: Kind) -> Masks:
        shape, generator, masks = as_block(self.block), torch.Generator().manual_seed(5), {}
        for target in match_matrices(Residual(kind.mlp(self.hidden, 2 * self.hidden), self.hidden), "*"):
            if target.name.startswith("mlp."):
                grid = target.shape[0] // shape.rows, target.shape[1] // shape.cols
                masks[target.name] = torch.rand(grid, generator=generator) < 0.6
        kind.change(masks)
        return masks


@dataclass
class Pair:
    """A sparse model and its dense reference in the course of a sequence.

    Attributes:
        run: The sparse model as it is called: itself, or compiled.
        counts: For each module with a hook the calls seen in the sparse and in the dense model.
    """

    kind: Kind
    setting: Setting
    dense: nn.Module = field(init=False)
    model: nn.Module = field(init=False)
    masks: Masks = field(init=False)
    run: Callable[[Tensor], Tensor] = field(init=False)
    hooks: list[tuple] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.masks = self.setting.masks(self.kind)
        self.dense = self.setting.dense(self.kind, 0, self.masks)
        self.model = self.run = blast.to_sparse(copy.deepcopy(self.dense), self.masks)

    def set_model(self, model: nn.Module) -> None:
        """Another object takes the place of the model. Hooks have to be removed before it is made."""
        assert not self.hooks
        self.model = self.run = model

    def hooked(self) -> bool:
        """Whether a layer of an MLP that is not fused has a hook."""
        layers = [self.model.get_submodule(name) for name in self.masks]
        return not isinstance(self.model.mlp, SparseMlp) and any(layer._forward_hooks for layer in layers)

    def both(self) -> tuple[nn.Module, nn.Module]:
        return self.model, self.dense

    def remove_hooks(self) -> None:
        if self.hooks:
            torch._dynamo.reset()
        for *handles, _ in self.hooks:
            for handle in handles:
                handle.remove()
        self.hooks.clear()

    def other(self, seed: int) -> tuple[nn.Module, nn.Module]:
        """Another sparse model with the same masks, and its dense reference."""
        dense = self.setting.dense(self.kind, 100 + seed, self.masks)
        return blast.to_sparse(copy.deepcopy(dense), self.masks), dense


def inputs(pair: Pair, seed: int = 1) -> Tensor:
    given = torch.randn(3, 4, pair.setting.hidden, generator=torch.Generator().manual_seed(seed))
    return given.to(pair.setting.device, next(pair.dense.parameters()).dtype)


def mask_gradients(pair: Pair, dense: nn.Module) -> None:
    for name, mask in pair.masks.items():
        grad = dense.get_submodule(name).weight.grad
        if grad is not None:
            clear_dead_(grad, mask.to(grad.device), as_block(pair.setting.block))
