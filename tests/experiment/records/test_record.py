from __future__ import annotations

import json
import os

import pytest

from blast.errors import BlastError
from blast.experiment.plan.point import Point
from blast.experiment.records.record import LARGEST, make_record, read_language, read_record
from blast.files import json_digest, write_json

POINT = Point(id="a.b.dense.seed0", grid="g", stage="train", architecture="vit-nano", dataset="digits")
METRIC = {"metric": "top1", "value": 1.5}


def record(tmp_path):
    file = tmp_path / f"{POINT.id}.json"
    write_json(file, make_record(POINT, status="ok", result={"metrics": [METRIC]}, run={"wall_s": 1}))
    return file


def test_a_record_survives_writing_and_reading(tmp_path):
    assert read_record(record(tmp_path))["result"] == {"metrics": [METRIC]}
    assert Point.from_dict(read_record(record(tmp_path))["point"]) == POINT


def test_a_half_written_record_is_one_sentence_with_file_and_remedy(tmp_path):
    file = record(tmp_path)
    file.write_text(file.read_text()[:100])
    with pytest.raises(
        BlastError, match=r"seed0\.json: this record is damaged or half-written; delete it and run again"
    ):
        read_record(file)


def test_an_altered_record_is_refused(tmp_path):
    file = record(tmp_path)
    values = json.loads(file.read_text())
    values["result"]["metrics"][0]["value"] = 2.5
    file.write_text(json.dumps(values))
    with pytest.raises(BlastError, match="was altered"):
        read_record(file)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        (("result", "metrics"), {}, r"result.metrics is \{\}, not a list"),
        (("result", "metrics"), [{"value": 1}], "result.metrics.0 lacks the key 'metric'"),
        (
            ("result", "metrics"),
            [{"metric": "loss", "value": "1"}],
            "result.metrics.0.value is '1', not a finite number",
        ),
        (("result", "metrics"), [{"metric": "loss", "value": float("nan")}], "value is nan, not a finite number"),
        (("result", "curves"), {"x": {"step": [1], "value": []}}, "result.curves.x has 1 steps and 0 values"),
        (("result", "curves"), {"x": {"step": [1.5], "value": [1]}}, "result.curves.x is 1.5, not a whole number"),
        (
            ("result", "artifacts"),
            {"m": {"path": "../m", "digest": "sha256:0"}},
            r"path is '\.\./m', not a path inside",
        ),
        (("result", "artifacts"), {"m": {"path": "/etc/passwd", "digest": "sha256:0"}}, "not a path inside"),
        (("result", "dataset"), [], r"result.dataset is \[\], not a mapping or null"),
        (("run", "hardware"), "../../up", "run.hardware is '../../up', not a name of small letters"),
        (("run", "side_by_side"), 0, "run.side_by_side is 0, not a whole number of at least 1"),
        (("run", "scoring"), {"tokens": 1, "seconds": 0}, "run.scoring.seconds is 0, not a number above 0"),
        (("run", "started"), "yesterday", "run.started is 'yesterday', not a date and time or null"),
        (("status",), "good", "status is 'good', not 'ok' or 'failed'"),
        (("result",), [], "result is \\[\\], not a mapping"),
        (("point", "id"), "../../../up", "the key 'id' is '../../../up'; give an id of letters"),
        (("point", "grid"), "../up", "the key 'grid' is '../up'; give a name of letters"),
        (("point", "dataset"), "/up", "the key 'dataset' is '/up'; give a name of letters"),
        (("point", "seed"), 1, "was altered"),
        (("point_digest",), "sha256:00", "the digest of its point is that of another point"),
    ],
)
def test_a_record_whose_parts_are_wrong_is_one_sentence_even_with_a_right_digest(tmp_path, part, value, message):
    file = record(tmp_path)
    values = json.loads(file.read_text())
    inner = values
    for key in part[:-1]:
        inner = inner[key]
    inner[part[-1]] = value
    if part[0] in ("result", "status"):
        values["record_digest"] = json_digest(
            {"point": {key: entry for key, entry in values["point"].items() if key != "grid"}, "cause": None}
            | {key: values[key] for key in ("status", "result")}
        )
    file.write_text(json.dumps(values))
    with pytest.raises(BlastError, match=message) as refused:
        read_record(file)
    assert str(refused.value).endswith("delete it and run again: only this point is redone.")
    assert "\n" not in str(refused.value)


def test_a_record_under_the_name_of_another_point_is_refused(tmp_path):
    file = record(tmp_path)
    other = file.replace(tmp_path / "c.d.dense.seed0.json")
    with pytest.raises(BlastError, match=r"this is the record of 'a\.b\.dense\.seed0', under another name"):
        read_record(other)
    assert read_record(other, named=POINT.id)["point"]["id"] == POINT.id


def test_what_is_no_file_is_not_opened(tmp_path):
    file = record(tmp_path)
    real = file.replace(tmp_path / "real")
    file.symlink_to(real)
    with pytest.raises(BlastError, match="is a link, which is not followed"):
        read_record(file)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(BlastError, match="is a pipe or a device"):
        read_record(file)
    file.unlink()
    file.mkdir()
    with pytest.raises(BlastError, match="is a folder, not a file"):
        read_record(file)


def test_a_record_larger_than_any_is_not_read(tmp_path):
    file = record(tmp_path)
    with file.open("r+b") as stream:
        stream.truncate(LARGEST + 1)
    with pytest.raises(BlastError, match="is larger than the 64 MiB that are read; delete it"):
        read_record(file)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"[1]", b"null", b"[" * 100_000, b'{"format": 1, "cause": "\\ud800"}']
)
def test_a_record_that_is_no_json_is_half_written_or_damaged(tmp_path, content):
    file = record(tmp_path)
    file.write_bytes(content)
    with pytest.raises(BlastError, match="damaged or half-written; delete it"):
        read_record(file)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"status": "ok", "metrics": [{}]}, "metrics.0 lacks the key 'metric'"),
        ({"status": "ok", "left_out": {"a": 1}}, "left_out.a is 1, not text"),
        ({"metrics": []}, "lacks the key 'status'"),
        ([], "damaged or half-written"),
    ],
)
def test_language_metrics_with_a_fault_are_one_sentence(tmp_path, values, message):
    write_json(tmp_path / "a.json", values)
    with pytest.raises(BlastError, match=message) as refused:
        read_language(tmp_path / "a.json")
    assert str(refused.value).endswith("delete it and run again: only the metrics are computed again.")


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
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("stag", 1, "unknown key 'stag'; did you mean 'stage'"),
        ("format", 99, "format 99 is not the format 1"),
        ("stage", "trian", "the key 'stage' is 'trian'; did you mean 'train'"),
        pytest.param(
            "id",
            "../up",
            r"the key 'id' is '\.\./up'; give an id of letters",
            marks=pytest.mark.fault(
                fault="The id of a point leads out of its folder.",
                topic="Files that are damaged or come from elsewhere",
                happens="It is refused.",
                reads="the key 'id' is '…'; give an id of letters",
                lost="nothing",
            ),
        ),
        ("id", "x" * 201, "200 characters at most"),
        ("parent", "a/b", "the key 'parent' is 'a/b'; give an id of letters"),
        ("seed", -1, "the key 'seed' is -1; give a whole number from 0"),
        ("threads", True, "the key 'threads' is True; give a whole number"),
        ("block", [16], r"the key 'block' is \[16\]; give a list of 2 entries"),
        ("data", None, "the key 'data' is null; give a mapping"),
    ],
)
def test_a_point_file_with_a_fault_is_refused(tmp_path, key, value, message, reads):
    file = tmp_path / "p.json"
    file.write_text(json.dumps(POINT.to_dict() | {key: value}))
    with pytest.raises(BlastError, match=message) as raised:
        Point.read(file)
    reads(str(raised.value))
