"""Sequences of operations on a sparse model and on its dense reference, which have to agree after each of them.

The reference is plain PyTorch: the same model with dense weights that are zero outside the masks. Each operation is
done to both. `agree` then compares outputs, with and without gradients, all gradients, and the weights.
"""

from __future__ import annotations

import copy
import io
import pickle
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import blast
from blast.block_sparse.blocks import as_block, clear_dead_
from blast.errors import BlastError
from blast.layers.sparse_mlp import SparseMlp
from blast.model.discovery import match_matrices
from blast.model.fuse import fuse_for_training

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


def step(pair: Pair, how: int) -> None:
    """Two steps of an optimizer that is made for them."""
    make = [
        lambda given: torch.optim.SGD(given, lr=0.05, momentum=0.9),
        lambda given: torch.optim.AdamW(given, lr=0.01, eps=1e-2, foreach=False),
        lambda given: torch.optim.AdamW(given, lr=0.01, eps=1e-2, foreach=True),
        lambda given: torch.optim.AdamW(given, lr=0.01, eps=1e-2, fused=True),
    ][how % 4]
    for model, run in ((pair.dense, pair.dense), (pair.model, pair.run)):
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not trained:
            return
        optimizer = make(trained)
        for time in range(2):
            optimizer.zero_grad()
            torch.manual_seed(time)
            out = run(inputs(pair, 20 + time))
            if not out.requires_grad:
                return
            out.float().square().mean().backward()
            if model is pair.dense:
                mask_gradients(pair, model)
            optimizer.step()
        optimizer.zero_grad()


def mask_gradients(pair: Pair, dense: nn.Module) -> None:
    for name, mask in pair.masks.items():
        grad = dense.get_submodule(name).weight.grad
        if grad is not None:
            clear_dead_(grad, mask.to(grad.device), as_block(pair.setting.block))


def load_itself(pair: Pair, how: int) -> None:
    assign = bool(how % 2)
    for model in pair.both():
        state = {key: t * 1.5 if t.is_floating_point() else t.clone() for key, t in model.state_dict().items()}
        model.load_state_dict(state, assign=assign)


def load_another(pair: Pair, how: int) -> None:
    for model, other in zip(pair.both(), pair.other(how), strict=True):
        model.load_state_dict(other.to(next(model.parameters()).dtype).state_dict(), assign=bool(how % 2))


def cast_there_and_back(pair: Pair, how: int) -> None:
    for model in pair.both():
        model.to([torch.float64, torch.bfloat16, torch.float16][how % 3]).to(pair.setting.dtype)


def move_there_and_back(pair: Pair, how: int) -> None:
    for model in pair.both():
        model.cpu().to(pair.setting.device)


def copied(pair: Pair, how: int) -> None:
    """The model is replaced by a copy, and the first one is overwritten."""
    pair.remove_hooks()
    first = pair.model
    if how % 2:
        with torch.no_grad():
            pair.set_model(copy.deepcopy(first))
    else:
        pair.set_model(copy.deepcopy(first))
    overwrite(first)


def pickled(pair: Pair, how: int) -> None:
    pair.remove_hooks()
    first = pair.model
    if how % 2:
        file = io.BytesIO()
        torch.save(first, file)
        file.seek(0)
        pair.set_model(torch.load(file, weights_only=False))
    else:
        pair.set_model(pickle.loads(pickle.dumps(first)))
    overwrite(first)


def overwrite(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)


def fuse(pair: Pair, how: int) -> None:
    """Fuses it; an MLP with a hook on one of its layers is refused, and the only one here."""
    refused = pytest.raises(BlastError, match="a hook on one of its layers") if pair.hooked() else nullcontext()
    with refused:
        blast.fuse(pair.model, skip_dead=bool(how % 2))


def unfuse(pair: Pair, how: int) -> None:
    blast.unfuse(pair.model)


def fuse_training(pair: Pair, how: int) -> None:
    fuse_for_training(pair.model)


def compile_it(pair: Pair, how: int) -> None:
    pair.run = torch.compile(pair.model, backend=pair.setting.backend, dynamic=False)


def uncompile(pair: Pair, how: int) -> None:
    pair.run = pair.model


def saved_and_loaded(pair: Pair, how: int) -> None:
    pair.remove_hooks()
    fresh = pair.setting.dense(pair.kind, 50, {}).to(next(pair.dense.parameters()).dtype)
    with tempfile.TemporaryDirectory() as folder:
        blast.save(pair.model, folder)
        loaded = blast.load(folder, model=fresh)
    for old, new in zip(pair.model.parameters(), loaded.parameters(), strict=True):
        new.requires_grad_(old.requires_grad)
    overwrite(pair.model)
    dropout = [module.p for module in pair.dense.modules() if isinstance(module, nn.Dropout)]
    for module, p in zip((m for m in loaded.modules() if isinstance(m, nn.Dropout)), dropout, strict=True):
        module.p = p
    pair.set_model(loaded.train(pair.dense.training))


def write_data(pair: Pair, how: int) -> None:
    """Writes through `.data`, into the memory or as a new tensor."""
    for model in pair.both():
        for parameter in model.parameters():
            if how % 3 == 0:
                parameter.data.mul_(0.5)
            elif how % 3 == 1:
                parameter.data.copy_(parameter.data * 0.7)
            else:
                parameter.data = parameter.data * 1.25


def write_in_place(pair: Pair, how: int) -> None:
    with torch.no_grad():
        for model in pair.both():
            for parameter in model.parameters():
                parameter.mul_(1.1)


def swapped(pair: Pair, how: int) -> None:
    for model, other in zip(pair.both(), pair.other(how), strict=True):
        model.zero_grad()
        dtype = next(model.parameters()).dtype
        with torch.no_grad():
            for parameter, new in zip(model.parameters(), other.parameters(), strict=True):
                torch.utils.swap_tensors(parameter, nn.Parameter(new.to(dtype), requires_grad=parameter.requires_grad))


def from_vector(pair: Pair, how: int) -> None:
    for model in pair.both():
        vector_to_parameters(parameters_to_vector(model.parameters()).detach() * 0.9, model.parameters())


def freeze(pair: Pair, how: int) -> None:
    """Freezes all, the matrices of the MLP, everything else, or nothing."""
    for model in pair.both():
        for name, parameter in model.named_parameters():
            inside = name.startswith("mlp.")
            parameter.requires_grad_([False, not inside, inside, True][how % 4])
            parameter.grad = None


def training_flag(pair: Pair, how: int) -> None:
    for model in pair.both():
        model.train(bool(how % 2))


def dropout(pair: Pair, how: int) -> None:
    for model in pair.both():
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.25 * (how % 2)


def dense_and_sparse_again(pair: Pair, how: int) -> None:
    blast.to_dense(pair.model)
    blast.to_sparse(pair.model, pair.masks)


def shared_memory(pair: Pair, how: int) -> None:
    if pair.setting.device == "cpu":
        for model in pair.both():
            model.share_memory()


def emptied_and_loaded(pair: Pair, how: int) -> None:
    for model in pair.both():
        state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        model.to_empty(device=pair.setting.device).load_state_dict(state)


def hook(pair: Pair, how: int) -> None:
    """A hook on the MLP or on one of its matrices; it doubles what it sees."""
    name = ["mlp", *pair.masks][how % (1 + len(pair.masks))]
    seen = [0, 0]

    def double(place: int) -> Callable:
        def changed(module, given, output):
            seen[place] += 1
            return output * 2

        return changed

    handles = [m.get_submodule(name).register_forward_hook(double(place)) for place, m in enumerate(pair.both())]
    pair.hooks.append((*handles, seen))
    # A compiled graph has the hooks of the time when it was compiled, as PyTorch says.
    torch._dynamo.reset()


def unhook(pair: Pair, how: int) -> None:
    pair.remove_hooks()


OPERATIONS: dict[str, Callable[[Pair, int], None]] = {
    made.__name__: made
    for made in (
        step,
        load_itself,
        load_another,
        cast_there_and_back,
        move_there_and_back,
        copied,
        pickled,
        fuse,
        unfuse,
        fuse_training,
        compile_it,
        uncompile,
        saved_and_loaded,
        write_data,
        write_in_place,
        swapped,
        from_vector,
        freeze,
        training_flag,
        dropout,
        dense_and_sparse_again,
        shared_memory,
        emptied_and_loaded,
        hook,
        unhook,
    )
}


def inputs(pair: Pair, seed: int = 1) -> Tensor:
    given = torch.randn(3, 4, pair.setting.hidden, generator=torch.Generator().manual_seed(seed))
    return given.to(pair.setting.device, next(pair.dense.parameters()).dtype)


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
