"""Tells in one sentence that another process ended, where a GPU would wait for it without a word.

gloo raises as soon as a process is gone. NCCL does not: the GPU waits, and Python with it, until the process group's
timeout ends the process. So the processes are also connected by sockets, which close when one of them ends.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from blast.tensor_parallel.processes import LostProcessError, Processes

# Seconds until a process that still waits is ended, and for the connections to be made.
GRACE, CONNECT = 10.0, 10.0
# A process says its number, or that of a process that is lost, in so many bytes.
NUMBER = 4


class Watch:
    """Watches the other processes while this one generates. All processes make theirs at one time.

    Each process is connected with the first one, which tells the others if one is lost. If that happens while this
    process is within `working`, it prints one sentence, and ends `GRACE` seconds later if it is still there.

    Args:
        processes: The processes; at least two.

    Attributes:
        lost: The number of a process that ended; None if none did.
    """

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.lost: int | None = None
        self._calls = 0
        self._links = _connected(processes)
        threading.Thread(target=self._run, daemon=True).start()

    def __deepcopy__(self, _: object) -> Watch:
        return self

    @contextmanager
    def working(self) -> Iterator[None]:
        """Within the context this process needs the others.

        Raises:
            LostProcessError: if one of them has ended before.
        """
        if self.lost is not None:
            raise LostProcessError(self._sentence(self.lost))
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1

    def _run(self) -> None:
        while self._links:
            ready, _, _ = select.select(list(self._links.values()), [], [])
            for rank, link in list(self._links.items()):
                if link not in ready:
                    continue
                said = b""
                with suppress(OSError):
                    said = link.recv(NUMBER)
                if not said:
                    del self._links[rank]
                    link.close()
                self._tell(int.from_bytes(said, "big") if said else rank)

    def _tell(self, lost: int) -> None:
        if self.lost is not None:
            return
        self.lost = lost
        if self.processes.rank == 0:
            for link in self._links.values():
                with suppress(OSError):
                    link.sendall(lost.to_bytes(NUMBER, "big"))
        if not self._calls:
            return  # a process may end when there is nothing to do together
        print(f"blast: {self._sentence(lost)}", file=sys.stderr, flush=True)
        time.sleep(GRACE)
        if self._calls:
            # The main thread waits for the GPU, which waits for ever: nothing can be raised there.
            os._exit(1)

    def _sentence(self, lost: int) -> str:
        return (
            f"process {self.processes.rank} of {self.processes.size} waited for process {lost}, which ended; look at "
            "its messages, and start all of them again."
        )


def _connected(processes: Processes) -> dict[int, socket.socket]:
    """A connection for each other process in the first one, and one in each other; without those that failed."""
    hosts = processes.gather(socket.gethostname())
    together = len(set(hosts)) == 1
    server = None
    if processes.rank == 0:
        with suppress(OSError):
            server = socket.create_server(("127.0.0.1" if together else "", 0), backlog=processes.size)
    port = processes.gather(server.getsockname()[1] if server is not None else None)[0]
    links: dict[int, socket.socket] = {}
    if port is None:
        return links
    if server is None:
        address = "127.0.0.1" if together else os.environ.get("MASTER_ADDR", hosts[0])
        with suppress(OSError):
            links[0] = socket.create_connection((address, port), timeout=CONNECT)
            links[0].sendall(processes.rank.to_bytes(NUMBER, "big"))
            links[0].settimeout(None)
        return links
    end = time.monotonic() + CONNECT
    with server, suppress(OSError):
        while len(links) + 1 < processes.size:
            server.settimeout(max(0.01, end - time.monotonic()))
            link, _ = server.accept()
            link.settimeout(CONNECT)
            rank = int.from_bytes(link.recv(NUMBER), "big")
            if 0 < rank < processes.size:
                link.settimeout(None)
                links[rank] = link
    return links
