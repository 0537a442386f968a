"""CUDA graphs that take each other's place: they are captured where the last ones were, without new memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress

import torch

# Of the memory that a step takes, how much has to be free for graphs to have memory of their own.
ROOM = 1


class GraphMemory:
    """Captures graphs on one stream.

    What they held stays for the next ones. Where there is no room for it beside what steps take that are launched, they
    have to be told to give way to those (`give_way`).

    Args:
        stream: Of all captures.
    """

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream
        self._keeper: torch.cuda.CUDAGraph | None = None
        self._pool: tuple[int, int] | None = None
        self._has_room = True
        # Those that are being captured.
        self._graphs: list[torch.cuda.CUDAGraph] = []

    def captured(self, *works: Callable[[], None]) -> list[torch.cuda.CUDAGraph]:
        """Graphs of what each of `works` launches, to be replayed in this order; those before have to be gone by now.

        Each is replayed once already: the GPU runs it while the host captures the next one.

        Args:
            works: Launch in the stream, with nothing compiled by torch in it for the first time. Kernels of Triton may
                be. Within a work `cut` begins another graph.
        """
        torch.cuda.synchronize()
        if self._keeper is None:
            self._make_room()
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

    def cut(self) -> None:
        """Within a work: has what it launched so far replayed."""
        self._end()
        self._begin()

    def _begin(self) -> None:
        self._graphs.append(torch.cuda.CUDAGraph())
        # Modules are loaded when kernels are first launched, which only this mode allows.
        self._graphs[-1].capture_begin(pool=self._pool, capture_error_mode="relaxed")

    def _end(self) -> None:
        _end_capture(self._graphs[-1])
        self._graphs[-1].replay()

    def give_way(self, short: bool = False) -> None:
        """Lets a step by itself have the memory of graphs that are gone, if there was no room for both.

        Args:
            short: That there is none has shown since.
        """
        if short or not self._has_room:
            self._keeper = None

    def _make_room(self) -> None:
        device = self._stream.device
        free, _ = torch.cuda.mem_get_info(device)
        taken = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        self._has_room = free >= ROOM * taken
        if not self._has_room:
            torch.cuda.empty_cache()
        # Memory stays with a pool as long as there is a graph of it.
        self._pool, self._keeper = torch.cuda.graph_pool_handle(), torch.cuda.CUDAGraph()
        self._keeper.capture_begin(pool=self._pool)
        _end_capture(self._keeper)


def _end_capture(graph: torch.cuda.CUDAGraph) -> None:
    with warnings.catch_warnings():
        # As those are on purpose that hold memory, and those between two cuts where nothing is launched.
        warnings.filterwarnings("ignore", message="The CUDA Graph is empty")
        graph.capture_end()
