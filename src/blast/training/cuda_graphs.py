"""Captures the CUDA graphs of a training step; new graphs reuse the memory of the ones that they replace."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress

import torch

# Graphs keep memory of their own only if this multiple of the memory of an eager step is free.
ROOM = 1


class GraphMemory:
    """Captures graphs on one stream. Their memory stays reserved for the next graphs.

    If there is no room for that memory beside the memory of eager steps, call `release` before each eager step.

    Args:
        stream: The stream of all captures.
    """

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream
        # An empty graph that keeps the memory pool alive.
        self._pool_holder: torch.cuda.CUDAGraph | None = None
        self._pool: tuple[int, int] | None = None
        self._has_room = True
        # The graphs of the capture in progress.
        self._graphs: list[torch.cuda.CUDAGraph] = []

    def capture(self, *works: Callable[[], None]) -> list[torch.cuda.CUDAGraph]:
        """Captures what each of `works` launches. Drop all earlier graphs before this call.

        Each graph is replayed once right after its capture, while the CPU captures the next one.

        Args:
            works: Functions that launch on the stream. torch must have compiled their code before; Triton kernels may
                be compiled during the capture. A work may call `split` to begin another graph.

        Returns:
            The graphs, to be replayed in this order.
        """
        torch.cuda.synchronize()
        if self._pool_holder is None:
            self._make_pool()
        self._graphs = []
        for work in works:
            self._begin()
            try:
                work()
            except BaseException:
                with suppress(RuntimeError):
                    _end_capture(self._graphs[-1])
                self._graphs = []
                raise
            self._end()
        graphs, self._graphs = self._graphs, []
        return graphs

    def split(self) -> None:
        """Within a work: ends the present graph, replays it, and begins another."""
        self._end()
        self._begin()

    def _begin(self) -> None:
        self._graphs.append(torch.cuda.CUDAGraph())
        # Kernels load their modules at the first launch, which only this mode allows.
        self._graphs[-1].capture_begin(pool=self._pool, capture_error_mode="relaxed")

    def _end(self) -> None:
        _end_capture(self._graphs[-1])
        self._graphs[-1].replay()

    def release(self, short: bool = False) -> None:
        """Gives the memory of dropped graphs to an eager step, if there is no room for both.

        Args:
            short: Whether a step has run out of memory since the last capture.
        """
        if short or not self._has_room:
            self._pool_holder = None

    def _make_pool(self) -> None:
        device = self._stream.device
        free, _ = torch.cuda.mem_get_info(device)
        taken = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        self._has_room = free >= ROOM * taken
        if not self._has_room:
            torch.cuda.empty_cache()
        # Memory stays in a pool as long as one graph uses the pool.
        self._pool, self._pool_holder = torch.cuda.graph_pool_handle(), torch.cuda.CUDAGraph()
        self._pool_holder.capture_begin(pool=self._pool)
        _end_capture(self._pool_holder)


def _end_capture(graph: torch.cuda.CUDAGraph) -> None:
    with warnings.catch_warnings():
        # The graph that holds the pool is empty on purpose; so is one between two splits without a launch.
        warnings.filterwarnings("ignore", message="The CUDA Graph is empty")
        graph.capture_end()
