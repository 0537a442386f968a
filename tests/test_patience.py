"""No test gives up, or fails, because the machine had other work for a while."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from patience import PATIENCE

ROOT = Path(__file__).resolve().parents[1]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
# Seconds. What is given up sooner may only have waited for the processor.
SHORT = 300
CLOCKS = {"monotonic", "perf_counter", "time"}


def reads_a_clock(node: ast.AST) -> bool:
    return any(
        isinstance(part, ast.Call)
        and isinstance(part.func, ast.Attribute)
        and part.func.attr in CLOCKS
        and isinstance(part.func.value, ast.Name)
        and part.func.value.id == "time"
        for part in ast.walk(node)
    )


def number(node: ast.AST | None) -> float | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, int | float) else None


def impatient(tree: ast.AST) -> list[int]:
    """Lines that wait for a few seconds at most, or demand that something takes no longer."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            limits = [number(word.value) for word in node.keywords if word.arg == "timeout"]
            if isinstance(node.func, ast.Attribute) and node.func.attr in ("wait", "join") and node.args:
                limits.append(number(node.args[0]))
            found += [node.lineno for limit in limits if limit is not None and limit < SHORT]
        elif isinstance(node, ast.Compare) and reads_a_clock(node):
            numbers = [number(part) for part in node.comparators]
            found += [node.lineno for limit in numbers if limit is not None and limit < SHORT]
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add) and reads_a_clock(node.left):
            limit = number(node.right)
            found += [node.lineno] if limit is not None and limit < SHORT else []
    return found


@pytest.mark.parametrize("file", TESTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_test_waits_for_a_few_seconds_alone(file):
    lines = impatient(ast.parse(file.read_text()))
    assert not lines, f"{file}: lines {lines} wait less than {SHORT} s; use PATIENCE of tests/support/patience.py"


def test_a_short_wait_is_found():
    bad = [
        "process.wait(30)", "thread.join(20)", "run(command, timeout=60)", "end = time.monotonic() + 60",
        "assert time.monotonic() - began < 10", "assert time.perf_counter() - began <= 1.5",
    ]  # fmt: skip
    assert [len(impatient(ast.parse(line))) for line in bad] == [1] * len(bad)
    good = [
        "process.wait(PATIENCE)",
        "run(command, timeout=PATIENCE)",
        "', '.join(names)",
        "assert time.time() > 3 * x",
    ]
    assert [len(impatient(ast.parse(line))) for line in good] == [0] * len(good)


def test_the_limit_of_pytest_is_longer_than_any_wait(request):
    assert float(request.config.getini("timeout")) > PATIENCE


LOOK = """
import json, locale, os, signal, sys
sys.path.insert(0, "tests/support")
from pathlib import Path
import surroundings
surroundings.make_plain(Path(sys.argv[1]))
ignored = [s.name for s in signal.valid_signals() if hasattr(s, "name") and signal.getsignal(s) is signal.SIG_IGN]
mask = os.umask(0)
print(json.dumps({
    "ignored": sorted(ignored), "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, [])), "umask": mask,
    "names": sorted(os.environ), "home": os.environ["HOME"], "encoding": locale.getencoding(),
    "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
    "open": [os.fstat(number).st_mode > 0 for number in range(3)],
}))
"""


def test_every_test_process_has_the_same_surroundings_whoever_starts_it(tmp_path):
    """A shell's background job, `nohup`, a hook of git, an odd locale, a private umask, and no standard input."""
    import json

    shell = 'trap "" INT HUP TERM QUIT CHLD; umask 077; exec "$@" <&-'
    odd = {
        "LC_ALL": "C", "HOME": "/nonexistent", "GIT_DIR": "/nonexistent", "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
        "BLAST_CACHE": "/nonexistent", "RANK": "3", "COLUMNS": "20", "PYTHONWARNINGS": "ignore",
        "PATH": os.environ["PATH"],
    }  # fmt: skip
    command = ["sh", "-c", shell, "sh", sys.executable, "-c", LOOK, str(tmp_path / "home")]
    done = subprocess.run(command, cwd=ROOT, env=odd, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["ignored"]) <= {"SIGPIPE", "SIGXFSZ"}
    assert found["interrupt"]
    assert (found["blocked"], found["umask"], found["encoding"]) == (0, 0o022, "UTF-8")
    assert found["home"] == str(tmp_path / "home")
    assert found["open"] == [True] * 3
    assert not {"GIT_DIR", "MLFLOW_TRACKING_URI", "BLAST_CACHE", "RANK", "COLUMNS", "PYTHONWARNINGS"} & set(
        found["names"]
    )


def test_this_process_has_them():
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    assert os.environ["LC_ALL"] == "C.UTF-8"
    assert Path(os.environ["HOME"]) == ROOT / ".cache" / "home-of-tests"
