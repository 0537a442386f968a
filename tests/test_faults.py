"""`docs/faults.md` is what the marks of the tests give, and each test compares the messages that its marks promise."""

from __future__ import annotations

import faults
import pytest

# Under its full name it would be a row of the page.
fault = pytest.mark.fault
GIVEN = {"fault": "a", "topic": faults.TOPICS[0], "happens": "b", "lost": "nothing"}


def test_the_page_is_what_the_marks_give():
    assert faults.page() == faults.PAGE.read_text(), "a fault changed: run `make faults`, which writes docs/faults.md"


def test_every_topic_has_rows_and_every_row_says_what_happens_and_what_is_lost():
    found = [each for file in (faults.ROOT / "tests").rglob("test_*.py") for each in faults.marks(file)]
    assert {each.topic for each in found} == set(faults.TOPICS)
    assert all(each.fault and each.happens and each.lost for each in found)


@pytest.mark.parametrize(
    ("text", "words", "found"),
    [
        ("blast: the disk\n  is full; free some", "the disk is full", True),
        ("x.json: damaged at byte 7; run again", "…: damaged at byte …; run", True),
        ("x.json: damaged; run again", "…: damaged at byte …; run", False),
        ("run again; damaged", "damaged … run again", False),
        ("100 %.", "100 %…", True),
        ("a+b", "a.b", False),
    ],
)
def test_dots_stand_for_what_changes_and_white_space_for_nothing(text, words, found):
    assert faults.holds(text, words) is found


def test_a_promised_message_has_to_be_compared(request, reads):
    request.node.add_marker(fault(**GIVEN, reads="the disk … is full"))
    request.node.add_marker(fault(**(GIVEN | {"fault": "b"}), reads="give another"))
    with pytest.raises(AssertionError, match=r"none of .* is in 'another message'"):
        reads("another message")
    assert faults.unread(request.node) == {"the disk … is full", "give another"}
    reads("blast: the disk /a is full")
    assert faults.unread(request.node) == {"give another"}
    reads("give another")
    assert not faults.unread(request.node)


@pytest.mark.parametrize(
    ("mark", "said"),
    [
        ("'a'", "give named strings"),
        ("fault='a', topic='MLflow', happens=f'{b}', lost=''", "give named strings"),
        ("fault='a', topic='MLflow', happens=3, lost=''", "give named strings"),
        ("fault='a', topic='MLflow', happens='b'", "lost"),
        ("fault='a', topic='none', happens='b', lost='c'", "the topic 'none'; give one of"),
    ],
)
def test_a_mark_that_cannot_be_read_without_running_it_is_refused(tmp_path, mark, said):
    (tmp_path / "test_a.py").write_text(f"@pytest.mark.fault({mark})\ndef test_a(): ...\n")
    with pytest.raises(ValueError, match=said):
        faults.page(tmp_path)


def test_a_fault_stands_once_in_the_page_and_its_cell_is_one_cell(tmp_path):
    mark = "@pytest.mark.fault(fault='a | b', topic='MLflow', happens='<c>', lost='nothing')\ndef test_a(): ...\n"
    (tmp_path / "test_a.py").write_text(mark)
    assert "| a \\| b | &lt;c> |  | nothing |" in faults.page(tmp_path)
    (tmp_path / "test_b.py").write_text(mark)
    with pytest.raises(ValueError, match="name each fault once"):
        faults.page(tmp_path)
