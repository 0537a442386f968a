"""A target that no rule makes, said in one sentence: a quiet Snakemake keeps its own word for it to itself."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable

from blast.errors import unknown_name


class UnknownTarget(logging.Handler):
    """Listens to Snakemake's log for a target that cannot be made, and names the nearest that can.

    Args:
        known: Names of rules and of pictures.
    """

    def __init__(self, known: Iterable[str]) -> None:
        super().__init__(logging.ERROR)
        self.known = sorted(known)

    def emit(self, record: logging.LogRecord) -> None:
        found = re.search(r"No rule to produce (\S+) \(", record.getMessage())
        if found:
            print(f"blast: {unknown_name('target', found[1], self.known)}", file=sys.stderr)
