"""What the cache holds is verified at each use, and made again by itself, whatever happened to it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from blast.download import contents
from blast.download.cache import FACTS, build_once
from blast.download.contents import CONTENTS
from blast.errors import BlastError

FILES = {"tokens.bin": b"\x01\x02" * 500, "inner/tokenizer.json": b'{"a": 1}', "empty.jsonl": b""}


class Builder:
    """Counts how often the folder was made."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, aside: Path) -> dict:
        assert not list(aside.iterdir())
        self.times += 1
        for name, content in FILES.items():
            (aside / name).parent.mkdir(exist_ok=True)
            (aside / name).write_bytes(content)
        return {"name": "made", "count": 3}


def whole(folder: Path) -> bool:
    return all((folder / name).read_bytes() == content for name, content in FILES.items())


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def one_byte_changed(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def of_another_format(file: Path) -> None:
    file.write_bytes(b"\x80\x04not what it was")


def other_json(file: Path) -> None:
    file.write_text('["a", 1, {"b": null}]')


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def a_link(file: Path) -> None:
    file.rename(file.with_name("elsewhere"))
    file.symlink_to("elsewhere")


def gone(file: Path) -> None:
    file.unlink()


DAMAGES = [truncated, one_byte_changed, empty, of_another_format, other_json, a_folder, a_link, gone]


@pytest.fixture(autouse=True)
def _new_process():
    """Each use is that of a process that has looked at nothing yet."""
    contents._WHOLE.clear()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            "tokens.bin",
            marks=pytest.mark.fault(
                fault="A prepared set in the cache is damaged.",
                topic="Files that are damaged or come from elsewhere",
                happens="It is made again.",
                reads="…: …, so it is made again",
                lost="time",
            ),
        ),
        "inner/tokenizer.json",
        FACTS,
        CONTENTS,
    ],
)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_noticed_and_the_folder_is_made_again(tmp_path, capsys, name, damage, reads):
    build, folder = Builder(), tmp_path / "data"
    facts = build_once(folder, build)
    contents._WHOLE.clear()
    assert build_once(folder, build) == facts
    assert build.times == 1
    damage(folder / name)
    contents._WHOLE.clear()
    assert build_once(folder, build) == facts
    assert whole(folder)
    # Without its list of digests a folder counts as one of an earlier version, which is taken as it is.
    assert build.times == (1 if (name, damage) == (CONTENTS, gone) else 2)
    if build.times == 2:
        said = capsys.readouterr().err
        assert f"{folder}: " in said
        reads(said)
    assert build_once(folder, build) == facts
    assert build.times <= 2


def test_a_change_within_one_process_is_noticed_too(tmp_path):
    build, folder = Builder(), tmp_path / "data"
    build_once(folder, build)
    truncated(folder / "tokens.bin")
    build_once(folder, build)
    assert build.times == 2
    assert whole(folder)


@pytest.mark.parametrize("damage", ["file", "link", "link to nothing"])
def test_what_lies_in_the_place_of_the_folder_makes_room_and_no_link_is_followed(tmp_path, damage):
    build, folder, other = Builder(), tmp_path / "data", tmp_path / "other"
    other.mkdir()
    (other / "mine").write_text("kept")
    if damage == "file":
        folder.write_text("x")
    else:
        folder.symlink_to(other if damage == "link" else tmp_path / "nowhere")
    build_once(folder, build)
    assert whole(folder)
    assert not folder.is_symlink()
    assert (other / "mine").read_text() == "kept"
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_of_an_earlier_version_is_taken_as_its_digests_say(tmp_path):
    build, folder = Builder(), tmp_path / "data"
    build_once(folder, build)
    digests = {name: entry["digest"] for name, entry in json.loads((folder / CONTENTS).read_text()).items()}
    (folder / CONTENTS).unlink()
    (folder / FACTS).write_text(json.dumps({"digests": {"tokens.bin": digests["tokens.bin"]}}))
    contents._WHOLE.clear()
    build_once(folder, build)
    assert build.times == 1
    assert (folder / CONTENTS).is_file()
    (folder / CONTENTS).unlink()
    one_byte_changed(folder / "tokens.bin")
    contents._WHOLE.clear()
    build_once(folder, build)
    assert build.times == 2


def test_what_cannot_be_made_again_stays_as_it_is(tmp_path):
    build, folder = Builder(), tmp_path / "data"
    build_once(folder, build)
    truncated(folder / "tokens.bin")
    contents._WHOLE.clear()

    def offline(aside: Path) -> dict:
        raise BlastError("the source could not be reached; try again.")

    with pytest.raises(BlastError, match="could not be reached"):
        build_once(folder, offline)
    assert (folder / "inner/tokenizer.json").is_file()
    build_once(folder, build)
    assert whole(folder)


def test_a_large_file_is_read_again_only_where_its_size_or_time_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "LARGE", 100)
    read = []
    digest = contents.file_digest
    monkeypatch.setattr(contents, "file_digest", lambda file: read.append(file.name) or digest(file))
    build, folder = Builder(), tmp_path / "data"
    build_once(folder, build)
    contents._WHOLE.clear()
    read.clear()
    build_once(folder, build)
    assert "tokens.bin" not in read
    assert "tokenizer.json" in read
    os.utime(folder / "tokens.bin", (1, 1))
    for expected in (1, 0):
        contents._WHOLE.clear()
        read.clear()
        build_once(folder, build)
        assert read.count("tokens.bin") == expected
    one_byte_changed(folder / "tokens.bin")
    contents._WHOLE.clear()
    build_once(folder, build)
    assert build.times == 2


def test_a_copied_cache_is_taken(tmp_path):
    build, folder = Builder(), tmp_path / "data"
    facts = build_once(folder, build)
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    assert build_once(tmp_path / "copy", build) == facts
    assert build.times == 1
