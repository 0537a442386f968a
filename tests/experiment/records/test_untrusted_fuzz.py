"""Random changes to record and point files: refused in one sentence or taken in whole, and nothing else is touched."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import fake_records as fake
from hypothesis import given, settings
from hypothesis import strategies as st

from blast.errors import BlastError
from blast.experiment.cli import main
from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.records.export import export_grid
from blast.experiment.records.record import read_record
from blast.experiment.records.table import load_table
from blast.experiment.tracking import names
from blast.files import canonical_json, json_digest

POINT = fake.make_point("gpt2-nano", "pystdlib", "blast", 0.8, 0)
RECORD = fake.make_training_record(POINT)[0]

ESCAPES = [
    "../../../up", "/etc/passwd", "a/../../up", "..", ".", "", "a\x00b", "a\nb", "C:\\up", "..\\up", "~/up", "a/b",
    "x" * 300, "\ud800", "con", "{id}", "$(touch up)", "-rf", ".hidden", "a.", "a..b", "é", "../records",
    "logs/../../up",
]  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-2, 3), st.floats(), st.sampled_from(ESCAPES),
    st.text(max_size=8),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(ESCAPES) | st.text(max_size=5), inner),
    max_leaves=5,
)


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The path of each value in a JSON value, the lists of curves to their second entry."""
    found = [path] if path else []
    if isinstance(value, dict):
        entries = value.items()
    else:
        entries = list(enumerate(value))[:2] if isinstance(value, list) else ()
    return found + [each for key, inner in entries for each in places(inner, (*path, key))]


def changed(values: dict, path: tuple, what: str, value: Any) -> dict:
    """A copy with one place changed: another value, none, or one more key or entry beside it."""
    values = copy.deepcopy(values)
    inner: Any = values
    for key in path[:-1]:
        inner = inner[key]
    if what == "remove":
        del inner[path[-1]]
    elif what == "add" and isinstance(inner, list):
        inner.append(value)
    elif what == "add":
        inner["added"] = value
    else:
        inner[path[-1]] = value
    return values


def with_digests(record: dict) -> dict:
    """The record with the digests that whoever changed it would write."""
    try:
        point = Point.from_dict(record["point"])
        settings = {key: value for key, value in point.to_dict().items() if key != "grid"}
        parts = {key: record[key] for key in ("status", "cause", "result")}
        return record | {"point_digest": point.digest, "record_digest": json_digest({"point": settings, **parts})}
    except (BlastError, KeyError, TypeError, UnicodeError):
        return record


def check_one_sentence(error: BlastError) -> None:
    assert "\n" not in str(error)


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def refused(words: list[str], capture: list[str]) -> bool:
    """Runs the command. Whether it was refused, in one sentence."""
    with contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(io.StringIO()):
        code = main(words)
    capture.append(errors.getvalue())
    assert code in (0, 2), errors.getvalue()
    if code == 2:
        assert errors.getvalue().startswith("blast: ")
        assert errors.getvalue().count("\n") == 1, errors.getvalue()
    return code == 2


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(places(RECORD)), st.sampled_from(["set", "remove", "add"]), VALUES, st.booleans())
def test_a_record_is_refused_in_one_sentence_or_taken_in_whole(path, what, value, mended):
    record = changed(RECORD, path, what, value)
    if mended:
        record = with_digests(record)
    with tempfile.TemporaryDirectory(prefix="blast-fuzz-") as name:
        # Deep, so that `../../../up` would be seen.
        root = Path(name, "a", "b", "c", "d")
        away, here = root / "away", GridFolder(root / "here")
        file = away / "records" / f"{POINT.id}.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(record))
        before = snapshot(Path(name))
        if refused(["import", str(away), "--grid-dir", str(here.root)], []):
            assert snapshot(Path(name)) == before
            return
        made = {path for path in snapshot(Path(name)) if path not in before}
        folder = here.root.relative_to(name)
        assert made == {str(folder), str(folder / "records"), str(folder / "records" / f"{POINT.id}.json")}
        taken = read_record(here.record(POINT.id))
        given_record = json.loads(file.read_text())
        assert Point.from_dict(given_record.pop("point")) == Point.from_dict(taken.pop("point"))
        assert canonical_json(taken) == canonical_json(given_record)
        taken = read_record(here.record(POINT.id))
        _every_reader_takes(here, taken, root)


def _every_reader_takes(here: GridFolder, record: dict, root: Path) -> None:
    """What was taken in can be drawn, exported and sent to MLflow, or is refused in one sentence."""
    load_table(here.root, root / "recorded")
    names.tags(record), names.parameters(record["point"]), names.final_metrics(record["result"])
    list(names.curves(record["result"])), list(names.times(record["run"]))
    before = snapshot(root)
    try:
        export_grid(here.root, root / "recorded")
    except BlastError as error:
        check_one_sentence(error)
    assert all(path.startswith("recorded") for path in set(snapshot(root)) - set(before))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(places(POINT.to_dict())), st.sampled_from(["set", "remove", "add"]), VALUES)
def test_a_point_file_is_refused_in_one_sentence_or_taken_in_whole(path, what, value):
    values = changed(POINT.to_dict(), path, what, value)
    with tempfile.TemporaryDirectory(prefix="blast-fuzz-") as name:
        file = Path(name, "point.json")
        file.write_text(json.dumps(values))
        try:
            point = Point.read(file)
        except BlastError as error:
            check_one_sentence(error)
            return
        folder = GridFolder(Path(name, "grid"))
        places_of_point = [folder.record, folder.work, folder.failed, folder.language, folder.retry, folder.damaged]
        for place in (each(other).resolve() for each in places_of_point for other in (point.id, *point.needs)):
            assert place.is_relative_to(folder.root.resolve())
        assert Point.from_dict(json.loads(json.dumps(point.to_dict()))) == point


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60) | st.integers(0, 4000).map(lambda n: json.dumps(RECORD).encode()[:n]))
def test_bytes_that_are_no_record_or_point_are_one_sentence(content):
    with tempfile.TemporaryDirectory(prefix="blast-fuzz-") as name:
        file = Path(name, f"{POINT.id}.json")
        file.write_bytes(content)
        for read in (read_record, Point.read):
            try:
                read(file)
                raise AssertionError("it was taken")
            except BlastError as error:
                check_one_sentence(error)
