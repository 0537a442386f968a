"""Triton compile time: the seconds that Triton takes to compile kernels at their first launch."""

from __future__ import annotations

import importlib.util
import time
from typing import Any

import torch


class TritonCompileTime:
    """Adds up the seconds of Triton's just-in-time compiler between `start` and `stop`.

    Kernels of `torch.compile` are not included. Hooks that others have set are called too. Without a GPU or without
    Triton the result is 0.
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
        """Starts to measure, from zero."""
        self._seconds, self._started = 0.0, None
        if self._runtime is not None:
            self._hooks = self._runtime.jit_cache_hook, self._runtime.jit_post_compile_hook
            self._runtime.jit_cache_hook, self._runtime.jit_post_compile_hook = self._before, self._after

    def stop(self) -> float:
        """Stops and returns the seconds since `start`."""
        if self._runtime is not None:
            before, after = self._hooks
            # Keep a hook that somebody set after `start`.
            if self._runtime.jit_cache_hook == self._before:
                self._runtime.jit_cache_hook = before
            if self._runtime.jit_post_compile_hook == self._after:
                self._runtime.jit_post_compile_hook = after
        return self._seconds

    def _before(self, *args: Any, **kwargs: Any) -> bool | None:
        before, _ = self._hooks
        # A true result of the other hook cancels the compilation.
        cancelled = before(*args, **kwargs) if before else None
        self._started = None if cancelled else time.perf_counter()
        return cancelled

    def _after(self, *args: Any, **kwargs: Any) -> bool | None:
        if self._started is not None:
            self._seconds += time.perf_counter() - self._started
            self._started = None
        _, after = self._hooks
        return after(*args, **kwargs) if after else None
