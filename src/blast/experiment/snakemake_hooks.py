"""Hooks into Snakemake: what it refuses prints one sentence, which its quiet mode would hide."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from blast.errors import BlastError, unknown_name


def refusal(sentence: object) -> Exception:
    """Prints why the workflow does not start, and returns the exception for the Snakefile to raise."""
    from snakemake.exceptions import WorkflowError

    print(f"blast: {sentence}", file=sys.stderr)
    return WorkflowError(str(sentence))


def check_writable(folder: Path) -> None:
    """Refuses a folder that cannot be made or written, before anything is trained for it.

    Raises:
        BlastError: if the folder, or one above it, is a file or may not be written.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise BlastError(
            f"{folder}: cannot be a folder, as '{there}' is a file; name another folder, or move the file."
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise BlastError(f"{folder}: '{there}' may not be written; change its permissions, or name another folder.")


class UnknownTargetMessage(logging.Handler):
    """Finds the error of an unknown target in Snakemake's log, and prints the nearest known target.

    Args:
        known: Names of rules and of figure and table files.
    """

    def __init__(self, known: Iterable[str]) -> None:
        super().__init__(logging.ERROR)
        self.known = sorted(known)

    def emit(self, record: logging.LogRecord) -> None:
        found = re.search(r"No rule to produce (.+) \(if ", record.getMessage())
        if found:
            print(f"blast: {unknown_name('target', found[1], self.known)}", file=sys.stderr)
