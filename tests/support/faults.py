"""The rows of `docs/faults.md`: each is a mark on the test that shows the fault, so that tests and table are one.

python tests/support/faults.py    # writes docs/faults.md again, as `make faults` does
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "faults.md"
TOPICS = (
    "Disks, outputs and commands",
    "Signals and processes",
    "Clusters",
    "What the verdict says",
    "What a run plans",
    "Files that are damaged or come from elsewhere",
    "MLflow",
)
HEAD = """# Faults

What goes wrong, what the suite then does, what you read, and what is lost. "…" stands for a part that changes.
[workflow.md](workflow.md) explains more. Each row is the mark `fault` of a test that makes the fault and compares the
message. `make faults` writes this page.
"""
Reads = Callable[[str], None]


@dataclass(frozen=True)
class Fault:
    """One row.

    Args:
        fault: What goes wrong.
        topic: The heading of its table, one of `TOPICS`.
        happens: What the suite does.
        reads: The message, with "…" for what changes; empty if there is none.
        lost: What is lost.
    """

    fault: str
    topic: str
    happens: str
    lost: str
    reads: str = ""

    def __post_init__(self) -> None:
        if self.topic not in TOPICS:
            raise ValueError(f"the fault '{self.fault}' has the topic '{self.topic}'; give one of {TOPICS}.")


def holds(text: str, words: str) -> bool:
    """Whether a text has these words, whatever stands for "…" and however it is broken into lines."""
    parts = [re.escape(" ".join(part.split())) for part in words.split("…")]
    return re.search(r".*?".join(parts), " ".join(text.split())) is not None


READ = pytest.StashKey[set[str]]()


def messages(item: pytest.Item) -> set[str]:
    """The messages that the marks of a test promise."""
    return {fault.reads for fault in (Fault(**mark.kwargs) for mark in item.iter_markers("fault"))} - {""}


def read(item: pytest.Item, text: str) -> None:
    """Asserts that a text has a message that the marks of the test promise. A case without a mark promises none."""
    promised = messages(item)
    found = {words for words in promised if holds(text, words)}
    assert found or not promised, f"none of {sorted(promised)} is in {text!r}"
    item.stash.setdefault(READ, set()).update(found)


def unread(item: pytest.Item) -> set[str]:
    """Messages of the marks of a test that it has compared with no text."""
    return messages(item) - item.stash.get(READ, set())


def marks(file: Path) -> Iterator[Fault]:
    """The marks of a file of tests, in their order; it is not imported.

    Raises:
        ValueError: if a mark is no list of named strings, for it could not be read.
    """
    found = [
        node for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault"
    ]  # fmt: skip
    for node in sorted(found, key=lambda node: node.lineno):
        try:
            named = {str(each.arg): ast.literal_eval(each.value) for each in node.keywords}
            if node.args or not all(isinstance(value, str) for value in named.values()):
                raise TypeError("not a named string")
            yield Fault(**named)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{file}, line {node.lineno}: {error}; give named strings.") from error


def cell(text: str) -> str:
    return re.sub(r"[|<*]", lambda found: {"<": "&lt;"}.get(found[0], "\\" + found[0]), text)


def page(tests: Path = ROOT / "tests") -> str:
    """The text of `docs/faults.md`.

    Raises:
        ValueError: if two marks are of the same fault.
    """
    faults = [fault for file in sorted(tests.rglob("test_*.py")) for fault in marks(file)]
    names = [fault.fault for fault in faults]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"more than one test has a mark of {twice}; name each fault once.")
    lines = [HEAD]
    for topic in TOPICS:
        lines += [f"## {topic}\n", "| fault | what happens | what you read | what is lost |", "|---|---|---|---|"]
        for fault in faults:
            if fault.topic == topic:
                cells = map(cell, (fault.fault, fault.happens, fault.reads, fault.lost))
                lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page())
