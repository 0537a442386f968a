"""Digests of code that are kept between processes: equal to what is computed anew, and never those of other code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from blast.experiment.records.code_cache import KEPT, CodeCache, source_digest
from blast.files import json_digest


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    monkeypatch.setenv("BLAST_CACHE", str(tmp_path / "cache"))
    package = tmp_path / "package"
    (package / "tables").mkdir(parents=True)
    (package / "__init__.py").write_text("a = 1\n")
    (package / "tables" / "tuned.json").write_text("{}")
    return {"package": package}


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "code").glob("*.json"))


def never() -> None:
    raise AssertionError("it is known")


def test_what_one_process_found_the_next_one_knows(roots, tmp_path):
    assert CodeCache(roots).get(("numbers", "vit", None), lambda: {"blast": "12"}) == {"blast": "12"}
    assert CodeCache(roots).get(("numbers", "vit", None), never) == {"blast": "12"}
    assert CodeCache(roots).get(("numbers", "gpt", None), lambda: "other") == "other"
    assert len(files(tmp_path)) == 1
    # Two that are open at once lose nothing of each other.
    one, two = CodeCache(roots), CodeCache(roots)
    one.get(("one",), lambda: "1")
    two.get(("two",), lambda: "2")
    assert CodeCache(roots).get(("one",), never) == "1"


@pytest.mark.parametrize("file", ["__init__.py", "tables/tuned.json", "tables/new.json"])
def test_any_change_of_a_file_makes_all_of_it_anew(roots, file):
    CodeCache(roots).get(("key",), lambda: "old")
    (roots["package"] / file).write_text("a = 2\n")
    assert CodeCache(roots).get(("key",), lambda: "new") == "new"


def test_what_is_found_in_files_that_were_edited_in_the_meantime_is_not_kept(roots):
    file = roots["package"] / "__init__.py"
    early = CodeCache(roots)
    file.write_text("a = 2\n")
    assert early.get(("key",), lambda: "of the edited file") == "of the edited file"
    file.write_text("a = 1\n")
    assert CodeCache(roots).get(("key",), lambda: "as it was") == "as it was"


def test_a_file_that_moved_is_a_change_and_bytecode_is_none(roots):
    before = source_digest(roots)
    (roots["package"] / "__pycache__").mkdir()
    (roots["package"] / "__pycache__" / "a.pyc").write_bytes(b"1")
    assert source_digest(roots) == before
    (roots["package"] / "__init__.py").rename(roots["package"] / "other.py")
    assert source_digest(roots) != before


@pytest.mark.fault(
    fault="The digests of the code in the cache are damaged or forged.",
    topic="Files that are damaged or come from elsewhere",
    happens="They are computed again.",
    lost="seconds",
)
def test_a_damaged_file_is_made_again_and_a_changed_value_is_not_believed(roots, tmp_path):
    CodeCache(roots).get(("key",), lambda: "true")
    (file,) = files(tmp_path)
    good = file.read_text()
    values = json.loads(good)["values"]
    forged = dict.fromkeys(values, "false")
    other = json.dumps({"digest": json_digest(["of other code", forged]), "values": forged})
    for bad in (good[:-9], good.replace("true", "false"), "[]", '{"digest": 1, "values": 2}', "[" * 10**5, other, ""):
        file.write_text(bad)
        assert CodeCache(roots).get(("key",), lambda: "true") == "true"
    file.unlink()
    file.symlink_to(tmp_path / "package" / "__init__.py")
    assert CodeCache(roots).get(("key",), lambda: "true") == "true"
    assert (tmp_path / "package" / "__init__.py").read_text() == "a = 1\n"


def test_a_cache_that_cannot_be_used_stops_nothing(roots, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        monkeypatch.setenv("BLAST_CACHE", str(place))
        assert CodeCache(roots).get(("key",), lambda: "made") == "made"


def test_old_files_go(roots, tmp_path):
    for count in range(KEPT + 3):
        (roots["package"] / "__init__.py").write_text(f"a = {count}\n")
        CodeCache(roots).get(("key",), lambda: "1")
        newest = CodeCache(roots)._file
        os.utime(newest, (count, count))
    assert len(files(tmp_path)) == KEPT
    assert newest in files(tmp_path)


@pytest.mark.slow
def test_a_fingerprint_from_the_cache_is_the_one_that_is_computed(tmp_path):
    code = (
        "from blast.experiment.plan.point import Point\n"
        "from blast.experiment.records import fingerprint as f\n"
        "point = Point(id='a', grid='g', stage='train', architecture='vit-nano', dataset='digits')\n"
        "print(f.fingerprint(point), f.training_fingerprint(point), f.module_digests(point))\n"
        "print(f._installed.cache_info().misses)\n"
    )

    def run(**environment: str) -> list[str]:
        command = [sys.executable, "-c", code]
        return subprocess.check_output(command, text=True, env={**os.environ, **environment}).splitlines()

    first, second = (run(BLAST_CACHE=str(tmp_path / "cache")) for _ in range(2))
    anew = run(BLAST_CACHE=os.devnull)
    assert first[0] == second[0] == anew[0]
    # The second one read no code.
    assert [first[1], second[1], anew[1]] == ["1", "0", "1"]
