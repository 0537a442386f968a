"""Launches that are repeated with other activations, without the work that Triton does for each call.

`kernel[grid](…)` binds and inspects some 30 arguments, looks the compiled kernel up, and checks its globals. It takes
the CPU 20 to 30 µs. A launch that was made once that way is repeated here by a call of the launcher of its compiled
kernel. The arguments are the same, but for the addresses of what each call makes anew: `x`, the result, and the buffers
between. Weights and lists keep their addresses: whoever repeats a launch checks that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton import knobs
from triton.runtime import driver

# Triton compiles for addresses that are divisible by it, if those of the first launch were.
ALIGNMENT = 16


class Launch(NamedTuple):
    """A launch that was made.

    Attributes:
        compiled: The compiled kernel.
        grid: Programs in three dimensions.
        arguments: Of all parameters of the kernel, in order.
    """

    compiled: Any
    grid: tuple[int, int, int]
    arguments: tuple[Any, ...]


def launch(kernel: Any, grid: tuple[int, ...], arguments: Sequence[Any], constants: Mapping[str, Any]) -> Launch | None:
    """Launches a kernel.

    Args:
        kernel: A function of Triton or Gluon.
        grid: Programs in up to three dimensions.
        arguments: The first arguments of the kernel.
        constants: The others by name, and options of the compiler.

    Returns:
        The launch; None if this version of Triton, or its interpreter, gives no handle to repeat it with.
    """
    compiled = kernel[grid](*arguments, **constants)
    names = getattr(kernel, "arg_names", None)
    if names is None or not all(hasattr(compiled, part) for part in ("run", "function", "packed_metadata")):
        return None
    rest = names[len(arguments) :]
    if not all(name in constants for name in rest):
        return None
    first, second, third = (*grid, 1, 1)[:3]
    return Launch(compiled, (first, second, third), (*arguments, *(constants[name] for name in rest)))


class Buffer(NamedTuple):
    """Memory that a call makes for itself.

    Attributes:
        tensor: What the recorded call made.
        zeroed: Whether it has to be zero at first.
    """

    tensor: Tensor
    zeroed: bool = False


class _Address:
    """An address in the place of a tensor, which it does not keep alive."""

    def __init__(self, address: int) -> None:
        self._address = address

    def data_ptr(self) -> int:
        return self._address


class _Repeated(NamedTuple):
    run: Any
    grid: tuple[int, int, int]
    function: Any
    metadata: Any
    arguments: list[Any]
    # Places among the arguments, and which address each takes.
    addresses: list[tuple[int, int]]
    # Likewise for descriptors, with the fields that stay.
    descriptors: list[tuple[int, int, type, dict[str, Any]]]


class Replay:
    """Repeats the launches of a call `x -> y` for other `x` of the same shape.

    Make one with `Replay.of`. It holds the addresses of weights and lists, but does not keep them alive.

    Args:
        x: The activations of the recorded call, `[..., in]`.
        out: Its result, `[..., out]`.
        buffers: What it made besides.
        launches: Its launches, in order.
    """

    def __init__(self, x: Tensor, out: Tensor, buffers: Sequence[Buffer], launches: list[_Repeated]) -> None:
        self.dtype, self.device, self.out_features = x.dtype, x.device, out.shape[-1]
        self._made = [(each.tensor.shape, each.tensor.dtype, each.zeroed) for each in buffers]
        self._launches = launches
        # The methods of the driver that Triton's own launch asks.
        self._device_now, self._stream_of = driver.active.get_current_device, driver.active.get_current_stream
        self._index = self._device_now()

    @classmethod
    def of(
        cls,
        x: Tensor,
        out: Tensor,
        buffers: Sequence[Buffer],
        fixed: Sequence[Tensor | None],
        launches: Sequence[Launch],
    ) -> Replay | None:
        """A replay of a call that was made.

        Args:
            x: Activations `[..., in]`, contiguous.
            out: The result.
            buffers: What the call made besides, `out` not among them.
            fixed: What stays where it is: weights, scales, biases and lists.
            launches: The launches of the call, in order.

        Returns:
            The replay; None if one of the launches read memory that is neither given nor fixed (a copy that was made
            for it), or if an address is not aligned.
        """
        if x.device.index not in (None, driver.active.get_current_device()):
            return None
        places = {tensor.data_ptr(): at for at, tensor in enumerate((x, out, *(each.tensor for each in buffers)))}
        known = {tensor.data_ptr() for tensor in fixed if tensor is not None}
        if any(address % ALIGNMENT for address in places):
            return None
        made = [_repeated(each, places, known) for each in launches]
        repeated = [each for each in made if each is not None]
        return cls(x, out, buffers, repeated) if len(repeated) == len(made) else None

    def __call__(self, x: Tensor) -> Tensor | None:
        """The result for `x` of the recorded shape; None if the call has to be made in the ordinary way."""
        if x.dtype is not self.dtype or x.device != self.device or not x.is_contiguous() or _watched():
            return None
        if self._device_now() != self._index:
            return None
        out = x.new_empty((*x.shape[:-1], self.out_features))
        addresses, made = [x.data_ptr(), out.data_ptr()], []
        for shape, dtype, zeroed in self._made:
            buffer = (torch.zeros if zeroed else torch.empty)(shape, dtype=dtype, device=self.device)
            made.append(buffer)
            addresses.append(buffer.data_ptr())
        for address in addresses:
            if address % ALIGNMENT:
                return None
        stream = self._stream_of(self._index)
        for each in self._launches:
            arguments = each.arguments.copy()
            for place, which in each.addresses:
                arguments[place] = addresses[which]
            for place, which, kind, fields in each.descriptors:
                descriptor = object.__new__(kind)
                descriptor.__dict__.update(fields, base=_Address(addresses[which]))
                arguments[place] = descriptor
            each.run(*each.grid, stream, each.function, each.metadata, None, None, None, *arguments)
        return out


def _repeated(launch: Launch, places: Mapping[int, int], known: set[int]) -> _Repeated | None:
    """A launch with its fixed addresses filled in; None if it cannot be repeated."""
    arguments = list(launch.arguments)
    addresses: list[tuple[int, int]] = []
    descriptors: list[tuple[int, int, type, dict[str, Any]]] = []
    for place, argument in enumerate(arguments):
        base = getattr(argument, "base", None)
        tensor = argument if isinstance(argument, Tensor) else base
        if not isinstance(tensor, Tensor):
            continue
        address, fields = tensor.data_ptr(), getattr(argument, "__dict__", None)
        if tensor is not argument and not isinstance(fields, dict):
            return None
        if address in places:
            if tensor is argument:
                addresses.append((place, places[address]))
            else:
                descriptors.append((place, places[address], type(argument), dict(fields or {}) | {"base": None}))
            arguments[place] = None
        elif address not in known:
            return None
        elif tensor is argument:
            arguments[place] = address
        else:
            fixed = object.__new__(type(argument))
            fixed.__dict__.update(fields or {}, base=_Address(address))
            arguments[place] = fixed
    compiled = launch.compiled
    # `run` first: it loads the kernel, which sets `function`.
    run = compiled.run
    return _Repeated(
        run, launch.grid, compiled.function, compiled.packed_metadata, arguments, addresses, descriptors
    )  # fmt: skip


def _watched() -> bool:
    """Whether somebody asked Triton to be told of launches, as its profiler does."""
    runtime = knobs.runtime
    return _has_calls(runtime.launch_enter_hook) or _has_calls(runtime.launch_exit_hook)


def _has_calls(hook: Any) -> bool:
    return hook is not None and bool(getattr(hook, "calls", True))
