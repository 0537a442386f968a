"""What a user may do to a model, done to a sparse model and to its dense reference alike."""

from __future__ import annotations

import copy
import io
import pickle
import tempfile
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from operation_models import Pair, inputs, mask_gradients
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import blast
from blast.errors import BlastError
from blast.model.fuse import fuse_for_training


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
