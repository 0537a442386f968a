"""`make mutate` draws what it says, runs the tests that name a module, and counts only what a test has noticed."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import mutate
import pytest
from mutate import Mutants
from named_tests import MOST_FILES, nearest_tests
from patience import wait_until
from sites import ONLY_ON_A_GPU, Place, Unmutated, draw, modules

ROOT = Path(__file__).resolve().parents[2]

SOURCE = textwrap.dedent("""\
    from typing import TYPE_CHECKING
    if TYPE_CHECKING:
        LIMIT = 1 + 1
    def total(parts: list[int | None], more: int = 2) -> int | None:
        pairs: tuple[int | str, ...] = tuple(zip(parts, parts, strict=True))
        return sum(parts) + more if len(parts) == 3 else None
""")


def place(text: str, line: int) -> Place:
    return Place(line, SOURCE.splitlines()[line - 1].index(text))


def test_what_no_test_could_notice_is_left_alone():
    left = Unmutated(SOURCE)
    number, either = "core/NumberReplacer", "core/ReplaceBinaryOperator_BitOr_Add"
    assert (number, place("1 +", 3)) in left
    assert (either, place("| None", 4)) in left
    assert (either, Place(4, SOURCE.splitlines()[3].rindex("|"))) in left
    assert (either, place("| str", 5)) in left
    assert ("core/ReplaceTrueWithFalse", place("True", 5)) in left
    assert ("core/ReplaceComparisonOperator_Eq_Is", place("==", 6)) in left
    assert ("core/ReplaceComparisonOperator_Eq_NotEq", place("==", 6)) not in left
    assert (number, place("2)", 4)) not in left
    assert (number, place("3", 6)) not in left
    # A number of a figure may be a size or a colour.
    assert (number, place("3", 6)) in Unmutated(SOURCE, cosmetic=True)
    assert ("core/ReplaceBinaryOperator_Add_Sub", place("+", 6)) not in Unmutated(SOURCE, cosmetic=True)


def test_mutants_spread_over_the_modules_and_stay_when_more_are_drawn():
    sites = {f"m{number}": [(number, site) for site in range(number + 1)] for number in range(20)}
    twenty = draw(sites, 20, "1")
    assert sorted(number for number, _ in twenty) == list(range(20))
    forty = draw(sites, 40, "1")
    assert forty[:20] == twenty
    assert len(set(forty)) == 40
    assert draw(sites, 20, "2") != twenty
    assert len(draw(sites, 1000, "1")) == sum(range(1, 21))


def test_the_modules_are_those_of_the_library_and_of_the_analysis():
    found = {file.relative_to(ROOT).as_posix() for file in modules(ROOT)}
    assert {"src/blast/sparsity/schedule.py", "kernels/linear/ops.py", "paper_figures/views/pareto.py"} <= found
    assert "src/blast/experiment/analysis/claims.py" in found
    assert not [name for name in found if name.startswith(("src/blast/experiment/run", "tests"))]
    assert not found & ONLY_ON_A_GPU
    assert all((ROOT / name).is_file() for name in ONLY_ON_A_GPU)


@pytest.mark.slow
def test_the_tests_of_a_module_come_with_the_nearest_first():
    claims = nearest_tests("src/blast/experiment/analysis/claims.py", ROOT)
    assert claims[0].startswith("tests/experiment/analysis/test_claims")
    assert "tests/experiment/analysis/test_claims.py" in claims
    # A view is drawn by its name.
    assert "tests/paper_figures/test_quality_views.py" in nearest_tests("paper_figures/views/main_results.py", ROOT)
    assert nearest_tests("kernels/linear/ops.py", ROOT)[0] == "tests/kernels/linear/test_linear_ops.py"
    for file in modules(ROOT):
        found = nearest_tests(file.relative_to(ROOT).as_posix(), ROOT)
        assert len(found) <= MOST_FILES, file
        assert found or not ast.parse(file.read_text()).body[1:], file


TESTS = """
import subprocess, sys, time
def test_passes(): pass
def test_fails(): assert 1 == 2
def test_hangs():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"], start_new_session=True)
    open("child", "w").write(str(child.pid))
    time.sleep(3600)
"""
RUN = """
import json, sys
from pathlib import Path
from forked import run
place = Path.cwd() / "scratch"
asked = json.loads(sys.argv[1])
answers = [run([f"test_tried.py::{name}"], float(seconds), place, Path("log")) for name, seconds in asked]
print(json.dumps(answers))
"""


@pytest.mark.slow
def test_a_fork_says_which_test_failed_and_leaves_no_process_behind(tmp_path):
    (tmp_path / "test_tried.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    slow\n    gpu\n    browser\n")
    asked = json.dumps([("test_passes", 900), ("test_fails", 900), ("test_hangs", 30)])
    done = subprocess.run(
        [sys.executable, "-c", RUN, asked], cwd=tmp_path, env={"PYTHONPATH": str(ROOT / "tests" / "mutation")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    passed, failed, hung = json.loads(done.stdout)
    assert passed == {"outcome": "passed", "test": ""}
    assert failed == {"outcome": "failed", "test": "test_tried.py::test_fails"}
    assert hung == {"outcome": "unfinished", "test": ""}
    left = Path("/proc") / (tmp_path / "child").read_text() / "status"
    # Whoever is the first process of the machine has to notice that it ended.
    wait_until(lambda: not left.exists() or "State:\tZ" in left.read_text(), "the end of what the test started")


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """Two mutants of one module, with two tests of it; and the answers of the runs to come."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("m.py", "test_a.py", "test_b.py"):
        (tree / name).write_text("as it is")
    made = [
        {"id": str(number), "module": "m.py", "line": number, "operator": "AddNot", "text": f"{number}", "diff": "- +"}
        for number in (1, 2)
    ]
    (tmp_path / "mutants.json").write_text(json.dumps(made))
    asked: list[tuple[str, list[str]]] = []
    answers: list[dict[str, str]] = []

    def run(tests, seconds, scratch, log):
        asked.append(((tree / "m.py").read_text(), list(tests)))
        return answers.pop(0)

    monkeypatch.setattr(mutate, "run", run)
    monkeypatch.setattr(mutate, "nearest_tests", lambda module, root: ["test_a.py", "test_b.py"])
    return tmp_path, asked, answers


def outcome(name: str, test: str = "") -> dict[str, str]:
    return {"outcome": name, "test": test}


def start(folder: Path) -> Mutants:
    mutants = Mutants(folder / "mutants.json", folder, 60)
    mutants.run()
    return mutants


def test_a_mutant_is_killed_by_a_test_that_passes_without_it(workplace):
    folder, asked, answers = workplace
    answers += [outcome("failed", "test_b.py::test_it"), outcome("passed"), outcome("passed")]
    page, score = start(folder).report()
    assert asked == [("1", ["test_a.py", "test_b.py"]), ("as it is", ["test_b.py::test_it"]), ("2", asked[0][1])]
    assert (folder / "tree" / "m.py").read_text() == "as it is"
    assert score == 50
    assert "2 of 2 mutants ran: 1 killed, 1 survived" in page
    assert "## m.py:2 AddNot" in page
    assert "m.py:1" not in page


def test_a_test_that_fails_anyway_kills_nothing_and_the_others_are_asked(workplace):
    folder, asked, answers = workplace
    answers += [outcome("failed", "test_a.py::test_it"), outcome("failed", "test_a.py::test_it"), outcome("passed")]
    answers += [outcome("failed", "test_a.py::test_it"), outcome("failed", "test_b.py::test_it"), outcome("passed")]
    _, score = start(folder).report()
    assert [tests for text, tests in asked if text == "1"] == [["test_a.py", "test_b.py"], ["test_b.py"]]
    assert score == 50
    assert not answers


def test_what_has_run_is_kept_and_a_survivor_runs_again_when_a_test_of_it_changes(workplace):
    folder, asked, answers = workplace
    answers += [outcome("failed", "test_a.py::test_it"), outcome("passed"), outcome("passed")]
    start(folder)
    asked.clear()
    start(folder)
    assert asked == []
    (folder / "tree" / "test_b.py").write_text("a new test")
    answers += [outcome("unfinished")]
    _, score = start(folder).report()
    assert [text for text, _ in asked] == ["2"]
    assert score == 50


@pytest.mark.fault(
    fault="`make mutate` is started twice.",
    topic="Signals and processes",
    happens="The second is refused.",
    reads="mutants are being run there already; wait for the end, or give another --workplace.",
    lost="nothing",
)
def test_two_at_once_in_one_place_are_refused(workplace, monkeypatch, capsys, reads):
    import fcntl

    folder, asked, _ = workplace
    command = ["mutate.py", str(folder / "mutants.json"), "--workplace", str(folder)]
    monkeypatch.setattr(sys, "argv", command)
    # It is for this process alone that nothing changes.
    monkeypatch.setattr(mutate.os, "nice", lambda by: None)
    with (folder / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert mutate.main() == 2
    said = capsys.readouterr().out
    assert "being run there already; wait for the end" in said
    reads(said)
    assert asked == []


@pytest.mark.fault(
    fault="`make mutate` is stopped by Ctrl-C.",
    topic="Signals and processes",
    happens="It ends with the report of what has run. The same command goes on.",
    reads="stopped; what has run is kept, and the same command goes on from there",
    lost="the mutant that was running",
)
def test_a_run_that_is_stopped_reports_what_has_run(workplace, monkeypatch, capsys, reads):
    folder, _, answers = workplace
    monkeypatch.setattr(sys, "argv", ["mutate.py", str(folder / "mutants.json"), "--workplace", str(folder)])
    for name in ("copy_tree", "preload"):
        monkeypatch.setattr(mutate, name, lambda *_: None)
    monkeypatch.setattr(mutate.os, "nice", lambda by: None)
    monkeypatch.setattr(mutate.signal, "signal", lambda *_: None)
    answers += [outcome("failed", "test_a.py::test_it"), outcome("passed")]
    run = mutate.run

    def run_and_stop(*given):
        if not answers:
            raise KeyboardInterrupt
        return run(*given)

    monkeypatch.setattr(mutate, "run", run_and_stop)
    assert mutate.main() == 0
    reads(capsys.readouterr().out)
    assert "1 of 2 mutants ran: 1 killed" in (folder / "report.md").read_text()
    monkeypatch.setattr(mutate, "run", run)
    answers += [outcome("passed")]
    assert mutate.main() == 1
    assert "2 of 2 mutants ran: 1 killed, 1 survived" in (folder / "report.md").read_text()
