"""Hooks into Snakemake: what it refuses prints one sentence, which its quiet mode would hide."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable

from blast.errors import unknown_name


def refusal(sentence: object) -> Exception:
    """Prints why the workflow does not start, and returns the exception for the Snakefile to raise."""
    from snakemake.exceptions import WorkflowError

    print(f"blast: {sentence}", file=sys.stderr)
    return WorkflowError(str(sentence))


class UnknownTargetMessage(logging.Handler):
    """Finds the error of an unknown target in Snakemake's log, and prints the nearest known target.

    Args:
        known: Names of rules and of figure and table files.
    """

    def __init__(self, known: Iterable[str]) -> None:
        super().__init__(logging.ERROR)
        self.known = sorted(known)

    def emit(self, record: logging.LogRecord) -> None:
        found = re.search(r"No rule to produce (\S+) \(", record.getMessage())
        if found:
            print(f"blast: {unknown_name('target', found[1], self.known)}", file=sys.stderr)
