"""Errors that a user can fix: each message is one sentence that says what is wrong and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# Message and exit code of a run that the user stops (Ctrl-C).
STOPPED, STOPPED_CODE = "stopped; what is done is kept, and the same command goes on from there.", 130

# Characters of a name in a message, and of a list of names that is given in full; names that are given of a longer one.
_LONGEST, _LONGEST_LIST, _NEAREST = 120, 600, 6

# Control characters and line breaks, as Python writes them in a string.
_ESCAPES = {number: ascii(chr(number))[1:-1] for number in (*range(32), *range(127, 160), 0x2028, 0x2029)}


class BlastError(ValueError):
    """An error that the user can fix. The message is one sentence and needs no traceback.

    Example:
        >>> blast.load("no-such-folder")
        Traceback (most recent call last):
        blast.errors.BlastError: ...no-such-folder is not a blast checkpoint...
    """

    def __init__(self, message: object = "") -> None:
        # What it repeats of a file can hold anything, also what moves the cursor of a terminal.
        super().__init__(str(message).translate(_ESCAPES))


def one_line(value: object) -> str:
    """A value as Python writes it, in one line; an array has several."""
    return " ".join(line.strip() for line in repr(value).splitlines())


def unknown_name(kind: str, name: str, known: Iterable[str]) -> BlastError:
    """The error for an unknown name; it suggests the nearest known one.

    Args:
        kind: What the name stands for, for instance `"architecture"`.
        name: The unknown name; a very long one is cut.
        known: All accepted names. Of many, the nearest are listed.
    """
    choices, name = sorted(known), _shortened(str(name))
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else _listed(name, choices)
    return BlastError(f"unknown {kind} '{name}'; {hint}")


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _listed(name: str, choices: list[str]) -> str:
    """All of a few names, or those of many that are nearest to `name`."""
    if sum(map(len, choices)) <= _LONGEST_LIST:
        return f"known: {', '.join(choices) or 'none'}."
    nearest = difflib.get_close_matches(name, choices, n=_NEAREST, cutoff=0)
    return f"the nearest of {len(choices)} known: {', '.join(map(_shortened, nearest))}."


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
