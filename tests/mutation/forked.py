"""Runs tests in forks of this process, which has imported what takes long to import and nothing of ours."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

# A test that is not slow takes some seconds on a quiet machine. One that hangs has noticed the change.
TEST_SECONDS = 90


def preload(tree: Path, scratch: Path) -> None:
    """Prepares this process: settings of the tests, and the packages that most of them need.

    Args:
        tree: The copy of the repository that the tests run in.
        scratch: Folder for what they write, emptied before each run.
    """
    os.environ.update(
        CUDA_VISIBLE_DEVICES="",
        OMP_NUM_THREADS="1",
        TRITON_INTERPRET="1",
        PYTHONDONTWRITEBYTECODE="1",
        PYTHONPATH=str(tree / "src"),
        TMPDIR=str(scratch),
        MLFLOW_DISABLE_TELEMETRY="true",
    )
    sys.dont_write_bytecode = True
    os.chdir(tree)
    sys.path[:0] = [str(tree / "src")]
    import hypothesis
    import matplotlib.pyplot
    import pandas
    import torch._dynamo
    import transformers
    import triton

    del hypothesis, matplotlib, pandas, torch, transformers, triton
    ours = [name for name in sys.modules if name.split(".")[0] in {"blast", "blast_kernels", "paper_figures"}]
    assert not ours, f"{ours} were imported before they were mutated"


class _FirstFailure:
    """A plugin that keeps the first test, or file, that did not pass."""

    name = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.name:
            self.name = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and not self.name:
            self.name = report.nodeid


def run(tests: Sequence[str], seconds: float, scratch: Path, log: Path) -> dict[str, Any]:
    """Runs tests until the first failure.

    Args:
        tests: Files, or names of single tests.
        seconds: When to stop them.
        scratch: As for `preload`.
        log: File for their output.

    Returns:
        `outcome` (`passed`, `failed` or `unfinished`) and `test`: the first that failed, if any.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ours)
        _in_the_child(tests, theirs, log)
    os.close(theirs)
    try:
        ready, _, _ = select.select([ours], [], [], seconds)
        said = os.read(ours, 1 << 16) if ready else b""
    finally:
        os.close(ours)
        for process in [*_below(child), child]:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        os.waitpid(child, 0)
    if not ready:
        return {"outcome": "unfinished", "test": ""}
    # A process that dies without a word has noticed the change as well.
    return json.loads(said) if said else {"outcome": "failed", "test": tests[0]}


def _below(process: int) -> list[int]:
    """All processes that a process has started, those in sessions of their own too."""
    found = []
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            started = [int(one) for one in children.read_text().split()]
        except OSError:
            continue
        for one in started:
            found += [*_below(one), one]
    return found


def _in_the_child(tests: Sequence[str], pipe: int, log: Path) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    first = _FirstFailure()
    code: int = 1
    try:
        chosen = ["-m", "not slow and not gpu and not browser and not network", f"--timeout={TEST_SECONDS}"]
        options = ["-x", "-q", "-p", "no:cacheprovider", *chosen]
        code = pytest.main([*options, *tests], plugins=[first])
    finally:
        # 5: all of them are marked slow, or need a GPU.
        answer = {"outcome": "passed" if code in (0, 5) else "failed", "test": first.name}
        os.write(pipe, json.dumps(answer).encode())
        os._exit(0)
