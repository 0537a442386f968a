"""What `blast run` shows: the lines of the workflow, and bars on a terminal, or a line now and then elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Protocol

from blast.experiment.run.progress import duration
from blast.experiment.todo.status import describe_progress
from blast.experiment.todo.watch import Look

# Seconds between two plain lines about the points that run, and points that are shown of those that run.
EVERY, MOST = 60.0, 8
# Seconds that are waited for the last lines, which a process that outlives the workflow may keep back.
PATIENCE = 3.0


class Display(Protocol):
    """Shows lines, and how far a run is."""

    def say(self, line: str) -> None:
        """Shows a line that stays."""

    def show(self, look: Look) -> None:
        """Shows how far the run is."""


@contextmanager
def display_of(output: IO[bytes] | None, plain: bool) -> Iterator[Display]:
    """A display that also shows what a process writes.

    Args:
        output: What the process writes.
        plain: Whether there are no bars on a terminal either.
    """
    with Bars() if sys.stdout.isatty() and not plain else Lines() as display:
        reader = threading.Thread(target=_repeat, args=(output, display), daemon=True)
        reader.start()
        try:
            yield display
        finally:
            reader.join(PATIENCE)


def _repeat(output: IO[bytes] | None, display: Display) -> None:
    for line in output or ():
        display.say(line.decode(errors="replace").rstrip("\n"))


class Lines:
    """Plain lines: those of the workflow, and from time to time one for each point that runs."""

    def __init__(self) -> None:
        self._shown = time.monotonic()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def say(self, line: str) -> None:
        """Prints a line."""
        print(line, flush=True)

    def show(self, look: Look) -> None:
        """Prints how far the points are that run, if the last time is long ago."""
        if time.monotonic() - self._shown < EVERY:
            return
        self._shown = time.monotonic()
        for name, progress in list(look.running.items())[:MOST]:
            self.say(f"{name}: {describe_progress(progress)}")


class Bars:
    """Bars on a terminal: points and jobs, and a bar for each point that runs."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._console = Console(highlight=False, emoji=False)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[more]}"),
            console=self._console,
            transient=True,
        )
        self._started = time.monotonic()
        self._tasks: dict[str, int] = {}

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def say(self, line: str) -> None:
        """Prints a line above the bars."""
        style = "red" if "FAILED" in line or line.startswith("blast:") else "yellow" if line.startswith("BAD") else None
        self._console.print(line, markup=False, style=style, soft_wrap=True)

    def show(self, look: Look) -> None:
        """Renews the bars."""
        done, total = look.points
        took = time.monotonic() - self._started
        left = f"about {duration(took / done * (total - done))} left" if 0 < done < total else duration(took)
        self._set("points", done, total, left)
        if look.jobs:
            self._set("jobs", *look.jobs, "")
        shown = dict(list(look.running.items())[:MOST])
        for name in self._tasks.keys() - shown.keys() - {"points", "jobs"}:
            self._bars.remove_task(self._tasks.pop(name))  # type: ignore[arg-type]
        for name, progress in shown.items():
            words = [word for word in describe_progress(progress).split(", ") if not word.startswith("step ")]
            self._set(f"  {name}", progress.step, progress.steps or None, ", ".join(words), name)

    def _set(self, label: str, done: int, total: int | None, more: str, name: str | None = None) -> None:
        key = name or label
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task(label, total=total, more=more)
        self._bars.update(self._tasks[key], completed=done, total=total, more=more)  # type: ignore[arg-type]
