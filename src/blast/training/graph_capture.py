"""CUDA graphs that take each other's place: they are captured where the last ones were, without new memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
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

    def captured(self, *works: Callable[[], None]) -> Iterator[torch.cuda.CUDAGraph]:
        """Graphs of what each of `works` launches, one after the other as they are asked for.

        They are to be replayed in this order, each as soon as it is there if one likes; those before have to be gone.

        Args:
            works: Launch in the present stream, with nothing compiled by torch in it for the first time. Kernels of
                Triton may be.
        """
        torch.cuda.synchronize()
        if self._keeper is None:
            self._make_room()
        for work in works:
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
            yield graph

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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is empty
            self._keeper.capture_begin(pool=self._pool)
            self._keeper.capture_end()
