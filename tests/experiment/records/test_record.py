from __future__ import annotations

import json

import pytest

from blast.errors import BlastError
from blast.experiment.plan.point import Point
from blast.experiment.records.record import make_record, read_record
from blast.files import write_json

POINT = Point(id="a.b.dense.seed0", grid="g", stage="train", architecture="vit-nano", dataset="digits")


def record(tmp_path):
    file = tmp_path / "a.json"
    write_json(file, make_record(POINT, status="ok", result={"metrics": [1.5]}, run={"wall_s": 1}))
    return file


def test_a_record_survives_writing_and_reading(tmp_path):
    assert read_record(record(tmp_path))["result"] == {"metrics": [1.5]}
    assert Point.from_dict(read_record(record(tmp_path))["point"]) == POINT


def test_a_half_written_record_is_one_sentence_with_file_and_remedy(tmp_path):
    file = record(tmp_path)
    file.write_text(file.read_text()[:100])
    with pytest.raises(BlastError, match=r"a\.json: this record is damaged or half-written; delete it and run again"):
        read_record(file)


def test_an_altered_record_is_refused(tmp_path):
    file = record(tmp_path)
    values = json.loads(file.read_text())
    values["result"]["metrics"] = [2.5]
    file.write_text(json.dumps(values))
    with pytest.raises(BlastError, match="was altered"):
        read_record(file)


def test_time_and_place_are_no_part_of_the_digest():
    one = make_record(POINT, status="ok", result={}, run={"wall_s": 1, "host": "x"})
    two = make_record(POINT, status="ok", result={}, run={"wall_s": 2, "host": "y"})
    assert one["record_digest"] == two["record_digest"]


def test_a_folder_that_cannot_be_written_is_one_sentence_and_leaves_nothing(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(BlastError, match="cannot be written"):
        write_json(blocked / "a.json", {})


def test_a_full_disk_is_one_sentence_and_the_old_record_stays(tmp_path, monkeypatch):
    file = record(tmp_path)
    before = file.read_text()

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(BlastError, match="No space left on device"):
        write_json(file, {"new": 1})
    assert file.read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("stag", 1, "unknown key 'stag'; did you mean 'stage'"),
        ("format", 99, "format 99 is not the format 1"),
        ("stage", "trian", "the key 'stage' is 'trian'; did you mean 'train'"),
        ("id", "../up", r"the key 'id' is '\.\./up'; give an id of letters"),
        ("id", "x" * 201, "200 characters at most"),
        ("parent", "a/b", "the key 'parent' is 'a/b'; give an id of letters"),
        ("seed", -1, "the key 'seed' is -1; give a whole number from 0"),
        ("threads", True, "the key 'threads' is True; give a whole number"),
        ("block", [16], r"the key 'block' is \[16\]; give a list of 2 entries"),
        ("data", None, "the key 'data' is null; give a mapping"),
    ],
)
def test_a_point_file_with_a_fault_is_refused(tmp_path, key, value, message):
    file = tmp_path / "p.json"
    file.write_text(json.dumps(POINT.to_dict() | {key: value}))
    with pytest.raises(BlastError, match=message):
        Point.read(file)
