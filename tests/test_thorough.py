"""The tests that `make test` leaves out: chosen by their times, and still there."""

from __future__ import annotations

from pathlib import Path

import thorough


def test_a_test_that_took_long_is_thorough_and_the_quickest_of_its_cases_is_not():
    seconds = {"a.py::one": 2.0, "a.py::two[x]": 3.0, "a.py::two[y]": 1.5, "a.py::three": 0.1, "a.py::four[x]": 0.9}
    seconds |= {"a.py::five[x]": 0.1, "a.py::five[y]": 4.0, "tests/test_structure.py::six": 5.0}
    assert thorough.chosen(seconds, longest=1.0) == ["a.py::five[y]", "a.py::one", "a.py::two[x]"]


def test_the_file_of_each_thorough_test_is_there():
    gone = {name.partition("::")[0] for name in thorough.names()}
    assert [file for file in sorted(gone) if not (Path(__file__).parents[1] / file).is_file()] == []


def test_the_thorough_ones_alone_are_marked(request, monkeypatch):
    items = request.session.items
    assert {item.nodeid for item in items if item.get_closest_marker("thorough")} <= thorough.names()
    one = next(item for item in items if item.nodeid not in thorough.names())
    monkeypatch.setattr(thorough, "names", lambda: frozenset({one.nodeid}))
    monkeypatch.setattr(one, "add_marker", lambda marker: marked.append(marker.name))
    marked: list[str] = []
    thorough.mark([one, *items])
    assert set(marked) == {"thorough"}
