"""How long tests wait for what has to happen: only a hang is ever noticed, however much else the machine does."""

from __future__ import annotations

import time
from collections.abc import Callable

# Seconds. The timeout of pytest (pyproject.toml) is longer, so that the wait that failed is named.
PATIENCE = 900


def wait_until(condition: Callable[[], object], what: str = "what the test waits for") -> None:
    """Waits until a condition is true.

    Raises:
        AssertionError: if it is not within `PATIENCE`.
    """
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {PATIENCE} s"
        time.sleep(0.02)
