"""Faults a user can mend: each is one sentence that says what is wrong and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# What is said when a run is stopped by hand (Ctrl-C), and the exit code that shells give it.
STOPPED, STOPPED_CODE = "stopped; what is done is kept, and the same command goes on from there.", 130


class BlastError(ValueError):
    """An error that the user can fix. The message is one sentence and needs no traceback.

    Example:
        >>> blast.load("no-such-folder")
        Traceback (most recent call last):
        blast.errors.BlastError: ...no-such-folder is not a blast checkpoint...
    """


def unknown_name(kind: str, name: str, known: Iterable[str]) -> BlastError:
    """The error for a name that is not among the known ones, naming the nearest.

    Args:
        kind: What the name should have been, for instance `"architecture"`.
        name: The name that was given.
        known: All names that would have been accepted.
    """
    choices = sorted(known)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(choices)}."
    return BlastError(f"unknown {kind} '{name}'; {hint}")
