"""Errors that a user can fix: each message is one sentence that says what is wrong and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# Message and exit code of a run that the user stops (Ctrl-C).
STOPPED, STOPPED_CODE = "stopped; what is done is kept, and the same command goes on from there.", 130


class BlastError(ValueError):
    """An error that the user can fix. The message is one sentence and needs no traceback.

    Example:
        >>> blast.load("no-such-folder")
        Traceback (most recent call last):
        blast.errors.BlastError: ...no-such-folder is not a blast checkpoint...
    """


def unknown_name(kind: str, name: str, known: Iterable[str]) -> BlastError:
    """The error for an unknown name; it suggests the nearest known one.

    Args:
        kind: What the name stands for, for instance `"architecture"`.
        name: The unknown name.
        known: All accepted names.
    """
    choices = sorted(known)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(choices) or 'none'}."
    return BlastError(f"unknown {kind} '{name}'; {hint}")
