"""CUDA graphs that take each other's place: one is captured where the last one was, without new memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress

import torch

# Of the memory that a step takes, how much has to be free for graphs to have memory of their own.
ROOM = 1


class GraphMemory:
    """Captures graphs on one stream, one alive at a time.

    What a graph held stays for the next one, if there is room for it beside what steps take that are launched. Else it
    can be had by these, and the next capture takes what they left: some hundred calls of the driver each time.

    Args:
        stream: Of all captures.
    """

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream
        self._keeper: torch.cuda.CUDAGraph | None = None
        self._pool: tuple[int, int] | None = None

    @property
    def kept(self) -> bool:
        """Whether there is room for what a graph holds beside steps that are launched."""
        return self._keeper is not None

    def captured(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """The graph of what `work` launches; the last graph has to be gone by now.

        Args:
            work: Launched in the present stream, with nothing compiled by torch in it for the first time. Kernels of
                Triton may be.
        """
        torch.cuda.synchronize()
        if self._keeper is None:
            self._make_room()
        graph = torch.cuda.CUDAGraph()
        # Modules are loaded when kernels are first launched, which only this mode allows.
        graph.capture_begin(pool=self._pool, capture_error_mode="relaxed")
        try:
            work()
        except BaseException:
            with suppress(RuntimeError):
                graph.capture_end()
            raise
        graph.capture_end()
        return graph

    def _make_room(self) -> None:
        device = self._stream.device
        free, _ = torch.cuda.mem_get_info(device)
        taken = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        self._pool = torch.cuda.graph_pool_handle()
        if free < ROOM * taken:
            torch.cuda.empty_cache()
            return
        # Memory stays with a pool as long as there is a graph of it.
        self._keeper = torch.cuda.CUDAGraph()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is empty
            self._keeper.capture_begin(pool=self._pool)
            self._keeper.capture_end()
