"""Runs each mutant against the tests that run its line, and reports those that no test noticed.

`make mutate` starts it. It runs in a copy of the repository, so that the checkout is never changed. What has run is
kept: the command goes on where it was stopped, and runs a survivor again once one of its tests has changed.
"""

from __future__ import annotations

import argparse
import compileall
import fcntl
import hashlib
import json
import os
import py_compile
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from executed import Executed
from forked import preload, run
from named_tests import nearest_tests

ROOT = Path(__file__).resolve().parents[2]


def copy_tree(tree: Path) -> None:
    """Makes `tree` a copy of what git knows here, changed and new files included."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    shutil.rmtree(tree, ignore_errors=True)
    for name in filter(None, listed.split("\0")):
        source, copy = ROOT / name, tree / name
        if source.is_symlink() or source.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy, follow_symlinks=False)
    # By content and not by time: a mutant is often written within the same second as the one before it.
    for folder in ("src", "kernels", "paper_figures"):
        compileall.compile_dir(tree / folder, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
    # Some tests ask git about their repository.
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=m", "-c", "user.email=m@m", "commit", "-qm", "m"]):
        subprocess.run(["git", *command], cwd=tree, check=True, capture_output=True)


def digest_of(tests: Sequence[str], tree: Path) -> str:
    """One digest of the tests that a mutant runs against."""
    return hashlib.sha256(b"".join((tree / test).read_bytes() for test in tests)).hexdigest()[:16]


class Mutants:
    """The mutants of one seed, their results, and the tree that they are tried in.

    Args:
        file: The mutants, as `mutants.py` writes them.
        workplace: Folder for the tree, the results and the report.
        seconds: For the tests of one mutant. If they pass so far, the mutant counts as one that survived.
    """

    def __init__(self, file: Path, workplace: Path, seconds: float) -> None:
        self.seconds = seconds
        self.mutants: list[dict[str, Any]] = json.loads(file.read_text())
        self.tree, self.scratch = workplace / "tree", workplace / "scratch"
        self.results_file, self.log = workplace / "results.jsonl", workplace / "tests.log"
        self.executed = Executed(workplace / "executed")
        self.results: dict[str, dict[str, Any]] = {}
        if self.results_file.is_file():
            for line in self.results_file.read_text().splitlines():
                result = json.loads(line)
                self.results[result["id"]] = result
        self._sound: dict[str, bool] = {}

    def run(self) -> None:
        """Runs every mutant that has no result yet, and then survivors whose tests have changed."""
        for number, mutant in enumerate(sorted(self.mutants, key=lambda one: one["id"] in self.results), 1):
            tests = self.tests_of(mutant)
            digest = digest_of(tests, self.tree)
            known = self.results.get(mutant["id"])
            if known and (known["outcome"] == "killed" or self._as_before(known, digest)):
                continue
            began = time.monotonic()
            result = self._try(mutant, tests)
            took = round(time.monotonic() - began, 1)
            result |= {"id": mutant["id"], "tests": digest, "seconds": took, "limit": self.seconds}
            self.results[mutant["id"]] = result
            with self.results_file.open("a") as stream:
                stream.write(json.dumps(result) + "\n")
            place = f"{mutant['module']}:{mutant['line']}"
            print(f"{number}/{len(self.mutants)} {result['outcome']:8} {result['seconds']:6} s {place}", flush=True)

    def tests_of(self, mutant: dict[str, Any]) -> list[str]:
        """The test files for a mutant: those that name its module, then all others that run its line.

        Of the former, those come last that were seen not to run it in their own process.
        """
        module = mutant["module"]
        running = self.executed.tests(module, mutant["line"], (self.tree / module).read_text())
        running = [test for test in running if (self.tree / test).is_file()]
        named = nearest_tests(module, self.tree)
        first = [test for test in named if test in running or not self.executed.knows(test)]
        return list(dict.fromkeys([*first, *running, *named]))

    def _as_before(self, known: dict[str, Any], tests: str) -> bool:
        """Whether a mutant that survived would meet the same tests again."""
        return known["tests"] == tests and (known["outcome"] == "survived" or known["limit"] >= self.seconds)

    def _try(self, mutant: dict[str, Any], tests: list[str]) -> dict[str, Any]:
        if not tests:
            return {"outcome": "survived", "test": ""}
        file, left = self.tree / mutant["module"], list(tests)
        source = file.read_text()
        while True:
            file.write_text(mutant["text"])
            try:
                found = run(left, self.seconds, self.scratch, self.log)
            finally:
                file.write_text(source)
            if found["outcome"] == "passed":
                return {"outcome": "survived", "test": ""}
            if found["outcome"] == "unfinished":
                return found
            if self._passes(found["test"]):
                return {"outcome": "killed", "test": found["test"]}
            # A test that fails without the change as well says nothing; the others are asked.
            print(f"  {found['test']} fails without a change too", flush=True)
            failing = found["test"].partition("::")[0]
            if failing not in left or len(left) == 1:
                return {"outcome": "survived", "test": ""}
            left.remove(failing)

    def _passes(self, test: str) -> bool:
        """Whether a test passes on the source as it is."""
        if test not in self._sound:
            self._sound[test] = run([test], self.seconds, self.scratch, self.log)["outcome"] == "passed"
        return self._sound[test]

    def report(self) -> tuple[str, float]:
        """A page on what survived, and the share of mutants in percent that were noticed."""
        ran = [(mutant, self.results[mutant["id"]]) for mutant in self.mutants if mutant["id"] in self.results]
        counts = Counter(result["outcome"] for _, result in ran)
        score = 100 * counts["killed"] / max(1, len(ran))
        lines = [
            "# Mutants that no test noticed",
            "",
            f"{len(ran)} of {len(self.mutants)} mutants ran: {counts['killed']} killed, {counts['survived']} survived, "
            f"{counts['unfinished']} survived the tests that ran within their time. Score: {score:.1f} %.",
        ]
        for mutant, result in ran:
            if result["outcome"] != "killed":
                lines += [
                    "",
                    f"## {mutant['module']}:{mutant['line']} {mutant['operator']}",
                    "",
                    "```diff",
                    mutant["diff"],
                    "```",
                ]
        return "\n".join(lines) + "\n", score


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mutants", type=Path, help="the mutants, as mutants.py writes them")
    parser.add_argument("--workplace", type=Path, required=True, help="folder for the copy, the results and the report")
    parser.add_argument("--least", type=float, default=90.0, help="percent below which the exit code is 1")
    parser.add_argument("--seconds", type=float, default=300.0, help="seconds for the tests of one mutant")
    options = parser.parse_args()
    # A shell starts its background jobs with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.nice(19)
    workplace = options.workplace.resolve()
    workplace.mkdir(parents=True, exist_ok=True)
    held = (workplace / "lock").open("w")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"{workplace}: mutants are being run there already; wait for the end, or give another --workplace.")
        return 2
    mutants = Mutants(options.mutants.resolve(), workplace, options.seconds)
    copy_tree(mutants.tree)
    preload(mutants.tree, mutants.scratch)
    try:
        mutants.run()
    except KeyboardInterrupt:
        print("stopped; what has run is kept, and the same command goes on from there", flush=True)
    page, score = mutants.report()
    (workplace / "report.md").write_text(page)
    print(page.split("\n")[2])
    print(f"the survivors are in {os.path.relpath(workplace / 'report.md', ROOT)}")
    return int(score < options.least)


if __name__ == "__main__":
    sys.exit(main())
