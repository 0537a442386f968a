"""Runs a model layer by layer: for a stage of one-shot pruning, only its own layer is computed.

The stages of one-shot pruning follow the layers, and a layer that was pruned does not change any more. So its outputs
are kept, and the layers before the present one return them at once. Layers after it are not run. All stages together
cost a few forward passes, instead of one for each stage. What the layers compute does not change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Forward = Callable[[nn.Module, Any], Any]


class StagedForward:
    """A forward function for the batches of a calibration, by their numbers. `staged_forward` makes one.

    Args:
        model: In eval mode.
        layers: Its layers, in their order.
        forward: Runs the model on a batch.
        batches: The batches.
    """

    def __init__(self, model: nn.Module, layers: Sequence[nn.Module], forward: Forward, batches: Sequence[Any]) -> None:
        self._model, self._forward, self._batches = model, forward, batches
        self._layers = list(layers)
        self._outputs: list[Any] = [None] * len(batches)
        self._present = 0

    def go_to(self, number: int) -> None:
        """Goes on to a layer. The layers before it have their final weights."""
        while self._present < number:
            self._outputs = [self.output(place) for place in range(len(self._batches))]
            self._present += 1

    def __call__(self, _model: nn.Module, place: int) -> None:
        """Runs the present layer on the batch of this number."""
        self.output(place)

    def output(self, place: int) -> Any:
        """What the present layer returns for the batch of this number."""
        stop = _Stop()
        handle = self._layers[self._present].register_forward_hook(stop.hook)
        try:
            with _returning(self._layers[: self._present], self._outputs[place]):
                self._forward(self._model, self._batches[place])
        except _Stop as found:
            return found.output
        finally:
            handle.remove()
        raise RuntimeError("the present layer was not called")


@torch.no_grad()
def staged_forward(model: nn.Module, path: str, forward: Forward, batches: Sequence[Any]) -> StagedForward | None:
    """A forward function that runs the layers of a model one by one; None if they do not simply follow each other.

    A trial tells: each layer has to be called once, in its order, and the last one must return the same if those before
    it are not run.

    Args:
        model: In eval mode; not changed.
        path: Path of its list of layers, for instance `model.layers`.
        forward: Runs the model on a batch.
        batches: The batches.
    """
    stack = model.get_submodule(path)
    if not isinstance(stack, nn.ModuleList) or not len(stack) or not batches:
        return None
    layers, called, outputs = list(stack), [], []

    def note(layer: nn.Module, _inputs: Any, output: Any) -> None:
        called.append(layer)
        outputs.append(output)

    handles = [layer.register_forward_hook(note) for layer in dict.fromkeys(layers)]
    try:
        forward(model, batches[0])
    finally:
        for handle in handles:
            handle.remove()
    if len(called) != len(layers) or any(a is not b for a, b in zip(called, layers, strict=True)):
        return None
    trial = StagedForward(model, layers, forward, batches[:1])
    if len(layers) > 1:
        trial._present, trial._outputs = len(layers) - 1, [outputs[-2]]
        try:
            found = trial.output(0)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
            return None
        if not _equal(found, outputs[-1]):
            return None
    return StagedForward(model, layers, forward, batches)


def _equal(one: Any, other: Any) -> bool:
    """Whether two outputs of a layer have the same hidden state: the whole output, or its first part."""
    one, other = (each[0] if isinstance(each, tuple) else each for each in (one, other))
    return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)


class _Stop(Exception):  # noqa: N818
    """Ends a forward pass behind a layer, with the output of the layer."""

    output: Any

    def hook(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        self.output = output
        raise self


@contextmanager
def _returning(layers: Sequence[nn.Module], output: Any) -> Iterator[None]:
    """A context in which layers return this output, whatever they get."""

    def forward(*_: Any, **__: Any) -> Any:
        return output

    before = [layer.__dict__.get("forward") for layer in layers]
    for layer in layers:
        layer.__dict__["forward"] = forward
    try:
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            del layer.__dict__["forward"]
            if own is not None:
                layer.__dict__["forward"] = own
