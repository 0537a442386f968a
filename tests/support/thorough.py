"""Which tests are thorough: those that took longer than most. `make test` leaves them out, and CI runs them.

They are in `tests/thorough.txt`, by their names. `make thorough` writes that file anew from the times of a run, so no
test has to be marked by hand. Of a test with several cases the quickest stays in `make test`, whatever it takes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parents[1] / "thorough.txt"
# Seconds of one of two busy cores.
LONGEST = 0.4
# What a change breaks most often without a word: these stay, whatever they take.
ALWAYS = ("tests/test_structure.py",)


def names() -> frozenset[str]:
    """The names of the thorough tests, as pytest gives them."""
    return frozenset(FILE.read_text(encoding="utf-8").splitlines())


def mark(items: Iterable[pytest.Item]) -> None:
    """Marks the thorough ones of some tests."""
    known = names()
    for item in items:
        if item.nodeid in known:
            item.add_marker(pytest.mark.thorough)


def chosen(seconds: Mapping[str, float], longest: float = LONGEST) -> list[str]:
    """The names of those that took longer than `longest`, sorted.

    The quickest case of a test stays in `make test`, and so do the files of `ALWAYS`.

    Args:
        seconds: Seconds of each test, with what was set up for it.
        longest: In seconds.
    """
    cases = defaultdict(list)
    for name, took in seconds.items():
        cases[name.partition("[")[0]].append((took, name))
    stay = {min(alike)[1] for alike in cases.values() if len(alike) > 1}
    stay |= {name for name in seconds if name.startswith(ALWAYS)}
    return sorted(name for name, took in seconds.items() if took > longest and name not in stay)


class _Times:
    """Adds up the times of each test, and writes the file at the end."""

    def __init__(self) -> None:
        self._seconds: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[report.nodeid] += report.duration

    def pytest_sessionfinish(self) -> None:
        FILE.write_text("".join(f"{name}\n" for name in chosen(self._seconds)), encoding="utf-8")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option `--find-thorough`."""
    parser.addoption("--find-thorough", action="store_true", help="write tests/thorough.txt from the times of this run")


def pytest_configure(config: pytest.Config) -> None:
    """Listens in the process that hears of all tests."""
    if config.getoption("--find-thorough") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Times())
