"""The time that Triton takes to compile kernels, which it does as they are first launched."""

from __future__ import annotations

import importlib.util
import time
from typing import Any

import torch


class KernelCompiling:
    """Adds up the seconds that Triton's just-in-time compiler takes between `start` and `stop`.

    Kernels that `torch.compile` makes are not among them. Hooks that are set already are called too. Nothing is counted
    without a GPU or without Triton.
    """

    def __init__(self) -> None:
        self._runtime: Any = None
        if torch.cuda.is_available() and importlib.util.find_spec("triton"):
            from triton import knobs

            self._runtime = knobs.runtime
        self._seconds = 0.0
        self._started: float | None = None
        self._hooks: tuple[Any, Any] = None, None

    def start(self) -> None:
        """Begins to count."""
        self._seconds, self._started = 0.0, None
        if self._runtime is not None:
            self._hooks = self._runtime.jit_cache_hook, self._runtime.jit_post_compile_hook
            self._runtime.jit_cache_hook, self._runtime.jit_post_compile_hook = self._before, self._after

    def stop(self) -> float:
        """The seconds since `start`."""
        if self._runtime is not None:
            before, after = self._hooks
            # Hooks that were set in between stay.
            if self._runtime.jit_cache_hook == self._before:
                self._runtime.jit_cache_hook = before
            if self._runtime.jit_post_compile_hook == self._after:
                self._runtime.jit_post_compile_hook = after
        return self._seconds

    def _before(self, *args: Any, **kwargs: Any) -> bool | None:
        before, _ = self._hooks
        # What another hook says to a compilation goes: true means that there will be none.
        instead = before(*args, **kwargs) if before else None
        self._started = None if instead else time.perf_counter()
        return instead

    def _after(self, *args: Any, **kwargs: Any) -> bool | None:
        if self._started is not None:
            self._seconds += time.perf_counter() - self._started
            self._started = None
        _, after = self._hooks
        return after(*args, **kwargs) if after else None
