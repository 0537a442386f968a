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


def one_line(value: object) -> str:
    """A value as Python writes it, in one line; an array has several."""
    return " ".join(line.strip() for line in repr(value).splitlines())


def unknown_name(kind: str, name: str, known: Iterable[str]) -> BlastError:
    """The error for an unknown name; it suggests the nearest known one.

    Args:
        kind: What the name stands for, for instance `"architecture"`.
        name: The unknown name.
        known: All accepted names.
    """
    choices = sorted(known)
    near = difflib.get_close_matches(str(name), choices, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(choices) or 'none'}."
    return BlastError(f"unknown {kind} '{name}'; {hint}")


def check_argument(what: str, value: object, kind: type | tuple[type, ...], remedy: str) -> None:
    """Refuses an argument of another type; a class in place of an instance is of another type too.

    Args:
        what: What the argument is, for instance `"the model"`.
        value: The argument.
        kind: The types that it may have.
        remedy: What to give.

    Raises:
        BlastError: if the value is of none of these types.
    """
    if not isinstance(value, kind):
        if isinstance(value, type):
            given = f"the class {value.__name__} itself"
        else:
            given = "None" if value is None else f"of type {type(value).__name__}"
        raise BlastError(f"{what} is {given}; give {remedy}.")
