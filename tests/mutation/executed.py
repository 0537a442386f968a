"""Which test files run a line of a module, and how long they take: a plugin that records it, and its reader.

`make mutate` records it once, by a run of the suite: `pytest -p executed --executed FOLDER`.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Generator
from pathlib import Path

import coverage
import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("src/blast", "kernels", "paper_figures")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option `--executed`."""
    parser.addoption("--executed", type=Path, help="folder for the lines that each test file runs")


def pytest_configure(config: pytest.Config) -> None:
    """Records in each process that runs tests."""
    folder = config.getoption("--executed")
    if folder and (hasattr(config, "workerinput") or not config.getoption("numprocesses", None)):
        worker = getattr(config, "workerinput", {}).get("workerid", "main")
        config.pluginmanager.register(_Recorder(folder.resolve(), worker))


class _Recorder:
    """Keeps lines by test file. All modules are imported at once, so lines that only an import runs have none."""

    def __init__(self, folder: Path, worker: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._seconds_file = folder / f"seconds.{worker}.json"
        self._digests_file = folder / f"digests.{worker}.json"
        self._seconds: Counter[str] = Counter()
        self._coverage = coverage.Coverage(
            data_file=folder / f"lines.{worker}", source=[str(ROOT / each) for each in SOURCES], config_file=False
        )
        self._coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        file = item.nodeid.partition("::")[0]
        self._coverage.switch_context(file)
        began = time.process_time()
        try:
            return (yield)
        finally:
            self._seconds[file] += time.process_time() - began

    def pytest_sessionfinish(self) -> None:
        self._coverage.stop()
        self._coverage.save()
        found = self._coverage.get_data().measured_files()
        digests = {Path(name).relative_to(ROOT).as_posix(): digest(Path(name).read_text()) for name in sorted(found)}
        self._seconds_file.write_text(json.dumps(self._seconds))
        self._digests_file.write_text(json.dumps(digests))


def digest(text: str) -> str:
    """What tells whether the lines of a module are those of the recording."""
    return hashlib.sha256(text.encode()).hexdigest()


class Executed:
    """What a run of the suite recorded.

    Args:
        folder: Its folder. If it is missing or empty, nothing is known of any line.
    """

    def __init__(self, folder: Path) -> None:
        self._lines: dict[str, dict[int, set[str]]] = {}
        self._seconds: Counter[str] = Counter()
        self._digests: dict[str, str] = {}
        for file in sorted(folder.glob("seconds.*.json")):
            self._seconds.update(json.loads(file.read_text()))
        for file in sorted(folder.glob("digests.*.json")):
            self._digests |= json.loads(file.read_text())
        for file in sorted(folder.glob("lines.*")):
            data = coverage.CoverageData(file)
            data.read()
            for name in data.measured_files():
                lines = self._lines.setdefault(Path(name).relative_to(ROOT).as_posix(), {})
                for line, tests in data.contexts_by_lineno(name).items():
                    lines.setdefault(line, set()).update(filter(None, tests))

    def knows(self, test: str) -> bool:
        """Whether a test file was there when the suite was recorded."""
        return test in self._seconds

    def tests(self, module: str, line: int, source: str) -> list[str]:
        """The test files that run a line, the quickest first.

        Args:
            module: Path of the module below the repository.
            line: From 1.
            source: The module's text now. If it changed since the recording, all files that run the module are meant.
        """
        lines = self._lines.get(module, {})
        if self._digests.get(module) == digest(source) and lines.get(line):
            found = lines[line]
        else:
            found = {test for tests in lines.values() for test in tests}
        return sorted(found, key=lambda test: (self._seconds[test], test))
