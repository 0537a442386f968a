"""Hooks into Snakemake: what it refuses prints one sentence, which its quiet mode would hide."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from blast.errors import BlastError, unknown_name
from blast.experiment.cluster_faults import fault_of_job
from blast.experiment.command_end import system_sentence

# What was printed already.
_SAID: list[str] = []
# Begins of what Snakemake says of jobs, which print their own errors, and of the end of a run.
_OF_JOBS = (
    *("RuleException", "CalledProcessError", "Error in rule", "Error in group", "job execution failed"),
    *("job did not complete", "Trying to restart", "Removing output files"),
)


def refusal(sentence: object) -> Exception:
    """Prints why the workflow does not start, and returns the exception for the Snakefile to raise."""
    from snakemake.exceptions import WorkflowError

    _say(sentence)
    return WorkflowError(str(sentence))


def _say(sentence: object) -> None:
    _SAID.append(str(sentence))
    print(f"blast: {sentence}", file=sys.stderr)


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
    """Says in one sentence each why Snakemake itself stops: in its quiet mode it would say nothing.

    For an unknown target, the sentence has the nearest known one. What a job prints is left out: it was seen.

    Args:
        known: Names of rules and of figure and table files.
    """

    def __init__(self, known: Iterable[str]) -> None:
        super().__init__(logging.ERROR)
        self.known = sorted(known)

    def emit(self, record: logging.LogRecord) -> None:
        said = record.getMessage()
        if sentence := fault_of_job(record):
            # Each attempt may be refused for the same reason.
            if sentence not in _SAID:
                _say(sentence)
            return
        found = re.search(r"No rule to produce (.+) \(if ", said)
        if found:
            _say(unknown_name("target", found[1], self.known))
        elif sentence := _why_snakemake_stops(said):
            _say(sentence)


def _why_snakemake_stops(said: str) -> str | None:
    """One sentence for an error of Snakemake; None if its cause was printed before."""
    if any(words in said for words in _OF_JOBS) or any(sentence in said for sentence in _SAID):
        return None
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if not lines:
        return None
    # The last one is what the system refused; those before it are of attempts to go on.
    *_, of_system = [None, *re.finditer(r"\[Errno (\d+)\] [^:'\n]+(?:: '([^'\n]+)')?", said)]
    if of_system:
        number, path = int(of_system[1]), of_system[2]
        return system_sentence(OSError(number, os.strerror(number), path or "a file of Snakemake, in .snakemake"))
    if not lines[0].startswith("Traceback"):
        text = " ".join(lines)
        return f"Snakemake stops: {text if len(text) <= 400 else text[:397] + '…'}"
    return f"Snakemake stops: {lines[-1]} (`--quiet host` shows more)."
