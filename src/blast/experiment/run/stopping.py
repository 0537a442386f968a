"""How a job ends that its machine wants back: at the end of its time, when it is preempted or cancelled.

Slurm, Kubernetes and `kill` send SIGTERM, and SIGKILL some seconds later (30, usually). `sbatch --signal` may send
SIGUSR1 instead. The process of a point then saves the state of its training after the step that runs, and ends. The job
tells its processes, waits for them, and ends by the signal. It writes no record: the next attempt resumes the point.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# Exit code of a process that ended because it was asked to.
STOPPED_EARLY = 75


class JobStop:
    """Whether a job was asked to end.

    Attributes:
        asked: The signal; 0 before it.
    """

    def __init__(self) -> None:
        self.asked = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes note of the signals until the end of the block; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = number

    def end(self) -> None:
        """Ends this process by the signal, if there was one, as if it had not listened."""
        if self.asked:
            signal.signal(self.asked, signal.SIG_DFL)
            os.kill(os.getpid(), self.asked)


class PointStop:
    """Whether the process of a point was asked to end: it does so at once, but a training saves its state first.

    Attributes:
        asked: Whether it was.
    """

    def __init__(self) -> None:
        self.asked, self._training = False, False

    def listen(self) -> None:
        """Takes note of the signals from now on."""
        for number in SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self.end()

    def end(self) -> None:
        """Ends this process if it was asked to and does not train."""
        if self.asked and not self._training:
            sys.exit(STOPPED_EARLY)

    @contextmanager
    def after_training(self) -> Iterator[None]:
        """Lets the training in the block end by itself; the process ends behind it."""
        self._training = True
        try:
            yield
        finally:
            self._training = False
            self.end()


# That of this process.
POINT_STOP = PointStop()
