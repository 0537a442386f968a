"""Records that were found good are not checked again, and what is not good is never taken for it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from finished_grid import STORE, planned, values, write_point

from blast.errors import BlastError
from blast.experiment.plan.paths import GridFolder
from blast.experiment.records import record as record_module
from blast.experiment.records import state
from blast.experiment.records.checked import Checked
from blast.experiment.records.record import make_record, read_record, write_record
from blast.experiment.records.state import Left, state_of
from blast.experiment.todo.todo import find_left


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("BLAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "code"


@pytest.fixture
def grid(cache, tmp_path):
    _, plan = planned(values("made"))
    folder = GridFolder(tmp_path / "results" / "made")
    for point in plan.points.values():
        write_point(point, folder)
    return plan, folder


def test_the_second_look_reads_no_record_and_finds_the_same(grid, monkeypatch):
    plan, folder = grid
    first = find_left(plan, folder, STORE)
    assert not any(left.runs for left in first)
    monkeypatch.setattr(record_module, "parse_json", lambda content: pytest.fail("it was read before"))
    again = find_left(plan, folder, STORE)
    assert [left._replace(state=None) for left in again] == [left._replace(state=None) for left in first]
    assert [left.state.record_digest for left in again] == [left.state.record["record_digest"] for left in first]
    assert all(left.state.left is Left.NOTHING for left in again)


def test_a_record_of_other_settings_other_code_or_another_point_shows_no_point_to_be_done(grid, monkeypatch):
    plan, folder = grid
    find_left(plan, folder, STORE)
    one, other = list(plan.points.values())[:2]
    checked, content = Checked(), folder.record(one.id).read_bytes()
    found = state_of(one, folder, checked)
    assert found.left is Left.NOTHING
    assert found.record is None
    changed = replace(one, seed=one.seed + 7)
    assert state_of(changed, folder, checked).reason == "its settings changed"
    with monkeypatch.context() as patch:
        patch.setattr(state, "fingerprint", lambda point: "sha256:other")
        patch.setattr(state, "training_fingerprint", lambda point: "sha256:other")
        assert state_of(one, folder, checked).reason == "its code changed"
    folder.record(other.id).write_bytes(content)
    assert state_of(other, folder, checked).left is Left.ALL
    # One that is good but failed is looked at each time.
    record = json.loads(content)
    result = record["result"]
    failed = make_record(one, status="failed", result=result, run=record["run"], cause="The loss is NaN.")
    write_record(folder, failed)
    for _ in range(2):
        assert state_of(one, folder, checked).reason == "The loss is NaN."


def test_a_record_that_changed_by_one_digit_is_checked(grid):
    plan, folder = grid
    find_left(plan, folder, STORE)
    changed = next(iter(plan.points))
    file = folder.record(changed)
    file.write_text(file.read_text().replace('"value": 0.5', '"value": 0.6'))
    for _ in range(2):
        assert [left.point.id for left in find_left(plan, folder, STORE) if left.runs] == [changed]


def test_a_good_record_under_another_name_or_of_other_settings_is_refused(grid):
    plan, folder = grid
    one, other = list(plan.points.values())[:2]
    checked = Checked()
    assert read_record(folder.record(one.id), planned=one, checked=checked)["point"] == one.values
    moved = folder.record(other.id)
    moved.write_bytes(folder.record(one.id).read_bytes())
    for point in (one, other):
        with pytest.raises(BlastError, match="under another name"):
            read_record(moved, planned=point, checked=checked)
    # Not of these settings: read in full, and returned as what it is.
    assert read_record(folder.record(one.id), planned=other, checked=checked)["point"] == one.values


@pytest.mark.fault(
    fault="The note of good records in the cache is damaged.",
    topic="Files that are damaged or come from elsewhere",
    happens="Each record is checked again.",
    lost="seconds",
)
def test_a_damaged_note_counts_as_none(cache):
    checked = Checked()
    checked.add(b"good")
    checked.save()
    (file,) = cache.glob("*.checked")
    assert b"good" in Checked()
    assert b"bad" not in Checked()
    whole = file.read_bytes()
    added = hashlib.sha256(b"bad").digest()[:16] + bytes(48)
    for damaged in (whole[:-1], b"", whole[:-1] + bytes([whole[-1] ^ 1]), b"x" * 100, whole + added):
        file.write_bytes(damaged)
        assert b"good" not in Checked()
        assert b"bad" not in Checked()
    file.write_bytes(whole)
    # Two that are open at once lose nothing of each other, and what is known is not written again.
    one, two = Checked(), Checked()
    one.add(b"one")
    two.add(b"two")
    one.save()
    two.save()
    assert all(content in Checked() for content in (b"good", b"one", b"two"))
    # What a record shows is kept as well.
    assert Checked().done(b"good", "point") is None
    one.add_done(b"good", "point", "sha256:" + "ab" * 32)
    one.save()
    assert Checked().done(b"good", "point") == "sha256:" + "ab" * 32
    assert Checked().done(b"good", "other") is None
    assert Checked().done(b"bad", "point") is None


def test_a_cache_that_cannot_be_written_stops_nothing(grid, tmp_path, monkeypatch):
    plan, folder = grid
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BLAST_CACHE", str(tmp_path / "file"))
    assert not any(left.runs for left in find_left(plan, folder, STORE))


def test_what_is_damaged_is_never_noted(grid, cache):
    plan, folder = grid
    for name in plan.points:
        record = json.loads(folder.record(name).read_text())
        record["result"]["metrics"][0]["value"] = "many"
        folder.record(name).write_text(json.dumps(record))
    assert all(left.runs for left in find_left(plan, folder, STORE))
    assert not list(cache.glob("*.checked"))
